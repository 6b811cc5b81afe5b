//! Credentials that are put away and taken out again: into the helper that is configured for the host, else into the file.
//!
//! What is written is of the one form that Docker, containers' tools and weightfs read; a file of the older form stays one.
//! It is replaced as a whole, never readable by everybody, stays its owner's and keeps whatever else it says. Called by `weightfs login` and `logout`.

use std::fs::{self, File as Opened, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::file::{File, OLDER, read, unusable};
use super::helper::HUB;
use super::matching::{Wanted, is_hub, is_plainly};
use super::{Credentials, Form, Sources, TOKEN_USER};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::repository::push::temporary;

/// Where credentials are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// In a file.
    File(PathBuf),
    /// By a helper of this name, which the file names.
    Helper {
        /// The last part of its name.
        name: String,
        /// The file.
        file: PathBuf,
    },
}

impl std::fmt::Display for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Helper { name, file } => {
                write!(f, "docker-credential-{name}, as {} says", file.display())
            }
        }
    }
}

/// Puts away the credentials for `host`, and says where.
///
/// # Errors
/// `Invalid` where there is no file to write to or it cannot be meant; `Storage` where it cannot be written; for a
/// helper `NotFound` and `Broken`.
pub async fn log_in(sources: &Sources, host: &str, credentials: &Credentials) -> Result<Keeper> {
    let (path, file) = open(sources)?;
    let (key, wanted) = (key(host), Wanted { host, repository: "" });
    if let Some(name) = file.helper(wanted) {
        sources.helper(name, host).map_err(|why| unusable(&path, &why))?.store(credentials).await?;
        // As Docker does: an empty entry says that the helper has some, and no older secret stays beside it.
        edit(&path, |auths| put(auths, host, key, json!({})))?;
        return Ok(Keeper::Helper { name: name.to_owned(), file: path });
    }
    let entry = entry(credentials);
    edit(&path, |auths| put(auths, host, key, entry))?;
    Ok(Keeper::File(path))
}

/// Puts the entry in the place of all that other tools may have written for the host by another of its names, which could
/// be found first.
fn put(auths: &mut Map<String, Value>, host: &str, key: String, entry: Value) {
    auths.retain(|other, _| !is_plainly(other, host));
    auths.insert(key, entry);
}

/// Takes out the credentials for `host`; `None` where there were none.
///
/// # Errors
/// As [`log_in`].
pub async fn log_out(sources: &Sources, host: &str) -> Result<Option<Keeper>> {
    let (path, file) = open(sources)?;
    let wanted = Wanted { host, repository: "" };
    let mut from = None;
    if let Some(name) = file.helper(wanted)
        && sources.helper(name, host).map_err(|why| unusable(&path, &why))?.erase().await?
    {
        from = Some(Keeper::Helper { name: name.to_owned(), file: path.clone() });
    }
    let is_for = |key: &str| is_plainly(key, host);
    if file.names(is_for) {
        let had_secret = file.credentials(wanted).is_ok_and(|found| found.is_some());
        edit(&path, |auths| auths.retain(|key, _| !is_for(key)))?;
        from = from.or(had_secret.then_some(Keeper::File(path)));
    }
    Ok(from)
}

/// The user that the file has credentials of for `host`.
///
/// # Errors
/// `Invalid` where the file cannot be read or meant.
pub fn known_user(sources: &Sources, host: &str) -> Result<Option<String>> {
    let (path, file) = open(sources)?;
    let found = file.credentials(Wanted { host, repository: "" }).map_err(|why| unusable(&path, &why))?;
    Ok(found.map(|credentials| credentials.user).filter(|user| !user.is_empty()))
}

fn open(sources: &Sources) -> Result<(PathBuf, File)> {
    let path = sources.login_file().ok_or_else(|| {
        Error::new(Kind::Invalid, "there is no file to keep credentials in")
            .hint("set HOME, DOCKER_CONFIG or --auth-file")
    })?;
    let file = File::load(&path)?.map(|(_, file)| file).unwrap_or_default();
    Ok((path, file))
}

/// The key that everybody looks for.
pub(super) fn key(host: &str) -> String {
    if is_hub(host) { HUB } else { host }.to_owned()
}

pub(super) fn entry(credentials: &Credentials) -> Value {
    let auth =
        |user: &str, secret: &str| STANDARD.encode(Zeroizing::new(format!("{user}:{secret}")).as_bytes());
    match credentials.form {
        Form::Password => json!({ "auth": auth(&credentials.user, credentials.secret.expose()) }),
        Form::IdentityToken => {
            let user = if credentials.user.is_empty() { TOKEN_USER } else { &credentials.user };
            json!({ "auth": auth(user, ""), "identitytoken": credentials.secret.expose() })
        }
    }
}

/// Changes the `auths` of a file, made where it is missing, and nothing else of it.
fn edit(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
    // A link is followed, so that it stays one: settings are often kept elsewhere.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let bytes = read(&path)?.filter(|bytes| !bytes.trim_ascii().is_empty());
    let parsed = bytes.map_or(Ok(Value::Object(Map::new())), |bytes| serde_json::from_slice(&bytes));
    let mut whole = match parsed {
        Ok(Value::Object(whole)) => whole,
        _ => return Err(unusable(&path, "it is no JSON object")),
    };
    let older = is_older(&path, &whole);
    let auths = if older {
        &mut whole
    } else {
        auths_of(&mut whole).ok_or_else(|| unusable(&path, "its auths is no object"))?
    };
    change(auths);
    let text = Zeroizing::new(written(&whole).storage(|| format!("cannot write {}", path.display()))?);
    replace(&path, &text).storage(|| format!("cannot write {}", path.display()))
}

fn auths_of(whole: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    let auths = whole.entry("auths").or_insert_with(|| json!({}));
    if auths.is_null() {
        *auths = json!({});
    }
    auths.as_object_mut()
}

/// Whether a file has hosts where others have `auths` among other things. With these beside them they would be read no more.
fn is_older(path: &Path, whole: &Map<String, Value>) -> bool {
    let is_entry = |value: &Value| {
        ["auth", "username", "password", "identitytoken"].iter().any(|key| value.get(key).is_some())
    };
    !["auths", "credsStore", "credHelpers"].iter().any(|key| whole.contains_key(*key))
        && (path.file_name().is_some_and(|name| name == OLDER) || whole.values().any(is_entry))
}

/// Indented by a tab, as Docker and containers' tools do.
fn written(whole: &Map<String, Value>) -> io::Result<Vec<u8>> {
    use serde::Serialize;
    let mut text = Vec::new();
    let form = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    whole.serialize(&mut serde_json::Serializer::with_formatter(&mut text, form))?;
    text.push(b'\n');
    Ok(text)
}

/// Puts a new file in the place of the one at `path`, at once, for the eyes of that one's owner and of those of its group
/// alone who were let in on purpose.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let make =
        |name: &str| OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name));
    let taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    let (name, mut file) = temporary::make(make, taken)?;
    let beside = folder.join(name);
    let placed = take_after(&file, path, folder)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| Opened::open(folder)?.sync_all());
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed
}

/// Gives a file, which is its maker's alone, the owner of the one at `path` in `folder`, and what its group may do there unless
/// everybody may: that is how files come to be that nobody has thought about. Another's file is believed only where the folder
/// is that other's and nobody else may put a file there: who has put one in a common folder gets no secrets for it.
fn take_after(file: &Opened, path: &Path, folder: &Path) -> io::Result<()> {
    let (Ok(old), new) = (fs::metadata(path), file.metadata()?) else { return Ok(()) };
    if old.uid() != new.uid() && !is_alone_in(folder, old.uid())? {
        return Ok(());
    }
    if (old.uid(), old.gid()) != (new.uid(), new.gid())
        && fchown(file, Some(old.uid()), Some(old.gid())).is_err()
    {
        // It stays his who may write here at all.
        return Ok(());
    }
    let mode = old.mode() & 0o777;
    let group = if mode & 0o007 == 0 { mode & 0o060 } else { 0 };
    file.set_permissions(fs::Permissions::from_mode(0o600 | group))
}

/// Whether a folder is this user's and no other's to write to.
fn is_alone_in(folder: &Path, user: u32) -> io::Result<bool> {
    let folder = fs::metadata(folder)?;
    Ok(folder.uid() == user && folder.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Secret;

    fn me() -> Credentials {
        Credentials::password("me", Secret::new("pw"))
    }

    fn sources(folder: &Path) -> Sources {
        Sources {
            docker_config: Some(folder.to_owned()),
            helper_folder: Some(folder.to_owned()),
            ..Sources::default()
        }
    }

    fn content(folder: &Path) -> Value {
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_is_put_away_is_found_and_the_rest_of_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, r#"{"detachKeys":"ctrl-q","auths":{"x.io":{"auth":"dXNlcjpwYXNz"}}}"#).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let sources = sources(folder.path());
        for (host, key) in [("r.io:5000", "r.io:5000"), ("docker.io", HUB)] {
            assert_eq!(log_in(&sources, host, &me()).await.unwrap(), Keeper::File(path.clone()));
            assert_eq!(content(folder.path())["auths"][key]["auth"], STANDARD.encode("me:pw"));
            assert_eq!(known_user(&sources, host).unwrap().as_deref(), Some("me"));
        }
        assert_eq!(content(folder.path())["detachKeys"], "ctrl-q");
        assert_eq!(content(folder.path())["auths"]["x.io"]["auth"], "dXNlcjpwYXNz");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for host in ["r.io:5000", "docker.io"] {
            assert_eq!(log_out(&sources, host).await.unwrap(), Some(Keeper::File(path.clone())));
            assert_eq!(log_out(&sources, host).await.unwrap(), None);
        }
        assert_eq!(content(folder.path())["auths"], json!({"x.io": {"auth": "dXNlcjpwYXNz"}}));
    }

    #[tokio::test]
    async fn a_file_and_its_folder_are_made_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/auth.json");
        let sources = Sources { auth_file: Some(path.clone()), ..Sources::default() };
        log_in(&sources, "r.io", &me()).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[tokio::test]
    async fn a_file_of_the_older_form_stays_one_and_keeps_its_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".dockercfg");
        for text in ["", "{}", r#"{"https://x.io":{"auth":"dXNlcjpwYXNz","email":"a@b"}}"#] {
            fs::write(&path, text).unwrap();
            let sources = sources(folder.path());
            log_in(&sources, "r.io", &me()).await.unwrap();
            let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert!(written.get("auths").is_none() && written["r.io"]["auth"].is_string(), "{written}");
            assert_eq!(known_user(&sources, "r.io").unwrap().as_deref(), Some("me"));
            let other = (!text.is_empty() && text != "{}").then_some("user");
            assert_eq!(known_user(&sources, "x.io").unwrap().as_deref(), other);
            log_out(&sources, "r.io").await.unwrap();
            assert_eq!(known_user(&sources, "r.io").unwrap(), None);
        }
        // One that says other things is none.
        fs::write(folder.path().join("config.json"), r#"{"HttpHeaders":{"User-Agent":"x"}}"#).unwrap();
        log_in(&sources(folder.path()), "r.io", &me()).await.unwrap();
        assert!(content(folder.path())["auths"]["r.io"]["auth"].is_string());
    }

    #[tokio::test]
    async fn a_file_stays_its_owners_and_no_more_may_read_it_than_were_meant_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for (before, after) in
            [(0o644, 0o600), (0o640, 0o640), (0o660, 0o660), (0o600, 0o600), (0o777, 0o600)]
        {
            fs::write(&path, "{}").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            let other = nix::unistd::geteuid().is_root();
            if other {
                std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
                std::os::unix::fs::chown(folder.path(), Some(12), Some(34)).unwrap();
            }
            let owner = || fs::metadata(&path).map(|found| (found.uid(), found.gid())).unwrap();
            let kept = owner();
            log_in(&sources(folder.path()), "r.io", &me()).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, after, "{before:o}");
            assert_eq!(owner(), kept);
        }
    }

    #[tokio::test]
    async fn who_has_put_a_file_where_others_may_too_is_not_given_what_is_put_away() {
        let me_and_mode = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.mode() & 0o777)
        };
        let root = nix::unistd::geteuid().is_root();
        for (owner, mode) in [(12, 0o777), (12, 0o1777), (12, 0o770), (0, 0o700)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.json");
            fs::write(&path, "{}").unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            if root {
                std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
                std::os::unix::fs::chown(folder.path(), Some(owner), Some(34)).unwrap();
            }
            log_in(&sources(folder.path()), "r.io", &me()).await.unwrap();
            let mine = nix::unistd::geteuid().as_raw();
            assert_eq!(me_and_mode(&path), (mine, 0o600), "{owner} {mode:o}");
        }
    }

    #[tokio::test]
    async fn a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real.json");
        fs::write(&real, "{}").unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("config.json")).unwrap();
        log_in(&sources(folder.path()), "r.io", &me()).await.unwrap();
        assert!(folder.path().join("config.json").is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("r.io"));
    }

    #[tokio::test]
    async fn an_identity_token_is_written_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let token = Credentials::identity_token("", Secret::new("tok"));
        log_in(&sources(folder.path()), "r.io", &token).await.unwrap();
        assert_eq!(content(folder.path())["auths"]["r.io"]["identitytoken"], "tok");
    }

    #[tokio::test]
    async fn a_file_that_is_no_configuration_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["[]", "{\"auths\": 7}", "hunter2"] {
            fs::write(folder.path().join("config.json"), text).unwrap();
            let error = log_in(&sources(folder.path()), "r.io", &me()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(!error.to_string().contains("hunter2"));
            assert_eq!(fs::read_to_string(folder.path().join("config.json")).unwrap(), text);
        }
    }

    /// A helper that keeps what it is given in a file beside itself, and says what Docker's own say.
    const HELPER: &str = r#"#!/bin/sh
kept="${0%/*}/kept"
case "$1" in
  store) cat > "$kept" ;;
  get) read -r server; [ -f "$kept" ] && grep -q "$server" "$kept" && cat "$kept" && exit 0
       echo 'credentials not found in native keychain'; exit 1 ;;
  erase) rm -f "$kept" ;;
esac
"#;

    #[tokio::test]
    async fn a_helper_is_given_what_is_its_to_keep_and_the_file_has_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-mine");
        fs::write(&program, HELPER).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("config.json"), r#"{"credHelpers":{"r.io":"mine"}}"#).unwrap();
        let sources = sources(folder.path());
        let kept = log_in(&sources, "r.io", &me()).await.unwrap();
        assert!(matches!(&kept, Keeper::Helper { name, .. } if name == "mine"));
        assert_eq!(content(folder.path())["auths"], json!({"r.io": {}}));
        let keychain = super::super::Keychain::new(&sources, "r.io", "a");
        let found = keychain.find(super::super::Freshness::Remembered).await.unwrap();
        assert_eq!(found.credentials, Some(me()));
        assert_eq!(log_out(&sources, "r.io").await.unwrap(), Some(kept));
        assert_eq!(log_out(&sources, "r.io").await.unwrap(), None);
        assert_eq!(content(folder.path())["auths"], json!({}));
    }
}
