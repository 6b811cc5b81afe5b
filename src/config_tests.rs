//! What settings mean, and that the documentation lists them.

use std::ffi::OsString;
use std::time::Duration;

use super::*;
use crate::content::{Integrity, Warm};
use crate::repository::{Proxies, RedirectTo};

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    Environment { variables: variables.collect(), root: false }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn flags_overrule_the_environment_which_overrules_the_file_which_overrules_defaults() {
    let (_folder, path) = file(
        "[content]\nwarm = \"none\"\nintegrity = \"strict\"\nread_deadline = \"10s\"\n[mount]\numask = \"027\"\n",
    );
    let environment = environment(&[("WEIGHTFS_INTEGRITY", "deferred"), ("WEIGHTFS_READ_DEADLINE", "20s")]);
    let flags = vec![("content.read_deadline", "30s".to_owned())];
    let settings = Settings::load(&environment, Some(&path), &flags).unwrap();
    assert_eq!(settings.content.warm, Warm::None);
    assert_eq!(settings.content.integrity, Integrity::Deferred);
    assert_eq!(settings.content.read_deadline, Duration::from_secs(30));
    assert_eq!(settings.repository.read_deadline, Duration::from_secs(30));
    assert_eq!(settings.mount.umask, 0o027);
    assert_eq!(settings.content.memory, content::Config::default().memory);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let settings = Settings::load(&environment(&[("WEIGHTFS_WARM", "")]), None, &Vec::new()).unwrap();
    assert_eq!(settings.content.warm, Warm::Auto);
    assert_eq!(settings.content.integrity, Integrity::Auto);
}

#[test]
fn an_unknown_key_is_refused_with_the_place_where_it_stands() {
    for text in ["[mount]\nspeed = 1\n", "speed = 1\n", "[speed]\nmount = 1\n"] {
        let (_folder, path) = file(text);
        let error = Settings::load(&environment(&[]), Some(&path), &Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{text}");
        assert!(error.to_string().contains("speed"), "{error}");
        assert!(error.to_string().contains("config.toml"), "{error}");
    }
}

#[test]
fn a_value_that_cannot_be_meant_is_refused_by_the_name_it_was_given_under() {
    for (variable, value) in [
        ("WEIGHTFS_STORE_SIZE", "much"),
        ("WEIGHTFS_STORE_SIZE", "0"),
        ("WEIGHTFS_MEMORY", "1kB"),
        ("WEIGHTFS_READ_DEADLINE", "0s"),
        ("WEIGHTFS_READ_DEADLINE", "soon"),
        ("WEIGHTFS_UMASK", "888"),
        ("WEIGHTFS_UMASK", "7777"),
        ("WEIGHTFS_UID", "-1"),
        ("WEIGHTFS_PLAIN_HTTP", "perhaps"),
        ("WEIGHTFS_HOSTS_DIR", "/no/such/folder"),
        ("WEIGHTFS_PROXY", "ftp://proxy"),
        ("HTTPS_PROXY", "ftp://proxy"),
        ("WEIGHTFS_READ_AHEAD", "2GiB"),
        ("WEIGHTFS_REQUESTS", "0"),
        ("WEIGHTFS_RATE", "1kB"),
        ("WEIGHTFS_REDIRECT_TO", "10.0.0.0/40"),
        ("WEIGHTFS_TRACES", "127.0.0.1:4317"),
        ("WEIGHTFS_TRACES", "https://collector:4317"),
    ] {
        let error = Settings::load(&environment(&[(variable, value)]), None, &Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().starts_with(variable), "{error}");
    }
    let error = Settings::load(&environment(&[]), None, &vec![("mount.uid", "x".into())]).unwrap_err();
    assert!(error.to_string().starts_with("--uid"), "{error}");
}

#[test]
fn places_to_be_led_to_are_a_list() {
    let environment = environment(&[("WEIGHTFS_REDIRECT_TO", "minio.corp, 10.0.0.0/8")]);
    let settings = Settings::load(&environment, None, &Vec::new()).unwrap();
    let expected = [RedirectTo::Host("minio.corp".into()), "10.0.0.0/8".parse().unwrap()];
    assert_eq!(settings.repository.redirect_to, expected);
    let shared = Arc::ptr_eq(&settings.repository.metrics, &settings.content.metrics);
    assert!(shared, "what the repository counts is shown with the rest");
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_an_unnamed_one_is_none() {
    let error =
        Settings::load(&environment(&[]), Some(Path::new("/nowhere/c.toml")), &Vec::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(Settings::load(&environment(&[("HOME", "/nowhere")]), None, &Vec::new()).is_ok());
}

#[test]
fn the_usual_variables_name_proxies_and_a_setting_overrules_them() {
    let proxies = |variables: &[(&str, &str)]| {
        let settings = Settings::load(&environment(variables), None, &Vec::new()).unwrap();
        let Proxies { tls, plain, .. } = settings.repository.proxies;
        [tls, plain].map(|proxy| proxy.map(|proxy| proxy.to_string()).unwrap_or_default())
    };
    assert_eq!(proxies(&[]), ["", ""]);
    assert_eq!(proxies(&[("HTTPS_PROXY", "s:1"), ("http_proxy", "p:1")]), ["http://s:1", "http://p:1"]);
    assert_eq!(
        proxies(&[("ALL_PROXY", "socks5h://a:1"), ("HTTPS_PROXY", "s:1")]),
        ["http://s:1", "socks5h://a:1"]
    );
    assert_eq!(proxies(&[("HTTPS_PROXY", "s:1"), ("https_proxy", "other:1")]), ["http://s:1", ""]);
    assert_eq!(proxies(&[("HTTPS_PROXY", "s:1"), ("WEIGHTFS_PROXY", "w:1")]), ["http://w:1", "http://w:1"]);
    let settings = |variable, list| {
        let settings = Settings::load(&environment(&[(variable, list)]), None, &Vec::new()).unwrap();
        settings.repository.proxies.except
    };
    assert_eq!(settings("no_proxy", "r.io"), Exceptions::read("r.io"));
    assert_eq!(settings("WEIGHTFS_NO_PROXY", "r.io"), Exceptions::read("r.io"));
}

#[test]
fn a_proxys_password_is_never_shown_and_not_taken_from_the_command_line() {
    let secret = "http://me:hunter2@proxy:1";
    let flags = vec![("registry.proxy", secret.to_owned())];
    let error = Settings::load(&environment(&[]), None, &flags).unwrap_err();
    assert!(error.to_string().contains("WEIGHTFS_PROXY"), "{error}");
    let settings = Settings::load(&environment(&[("WEIGHTFS_PROXY", secret)]), None, &Vec::new()).unwrap();
    let broken = Settings::load(&environment(&[("HTTPS_PROXY", "ftp://me:hunter2@p")]), None, &Vec::new());
    for shown in [format!("{error}"), format!("{settings:?}"), format!("{}", broken.unwrap_err())] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn folders_follow_the_user_and_the_xdg_variables() {
    let user =
        environment(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_CACHE_HOME", "rel")]);
    let settings = Settings::defaults(&user);
    assert_eq!(settings.store.folder, Path::new("/home/u/.cache/weightfs"));
    assert_eq!(settings.state.live, Path::new("/run/user/7/weightfs"));
    assert_eq!(settings.state.logs, Path::new("/home/u/.local/state/weightfs"));
    let root = Settings::defaults(&Environment { root: true, ..user });
    assert_eq!(root.store.folder, Path::new("/var/cache/weightfs"));
    assert_eq!(root.state.live, Path::new("/run/weightfs"));
}

#[test]
fn sockets_are_inherited_by_the_process_that_they_are_for() {
    let own = std::process::id().to_string();
    let names = |pid: &str, count: &str, names: &str| {
        let variables = [("LISTEN_PID", pid), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", names)];
        environment(&variables).inherited_sockets()
    };
    assert_eq!(names(&own, "2", "control:csi").unwrap(), ["control", "csi"]);
    assert_eq!(names(&own, "2", "control").unwrap(), ["control", "unknown"]);
    assert_eq!(names(&own, "1", "control:csi").unwrap(), ["control"]);
    assert!(names("1", "2", "control:csi").unwrap().is_empty());
    assert!(names("", "", "").unwrap().is_empty());
    for count in ["", "many", "-1", "1000000"] {
        assert_eq!(names(&own, count, "control").unwrap_err().kind(), Kind::Invalid, "{count}");
    }
}

#[test]
fn what_is_set_here_anyway_is_not_said_of_a_mount_but_what_is_asked_of_its_bytes_always_is() {
    let own = environment(&[("WEIGHTFS_INTEGRITY", "strict"), ("WEIGHTFS_WARM", "all")]);
    let said = |warm: &str| {
        let asked = [("content.integrity", "strict"), ("content.warm", warm)];
        let asked = asked.map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.differing(&asked.into()).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(said("all"), ["content.integrity"]);
    assert_eq!(said("none"), ["content.integrity", "content.warm"]);
}

#[test]
fn a_state_folder_holds_both_records_and_logs() {
    let settings = Settings::load(&environment(&[("WEIGHTFS_STATE", "/s")]), None, &Vec::new()).unwrap();
    assert_eq!(settings.state, StateConfig { live: "/s".into(), logs: "/s/log".into() });
}

#[test]
fn the_documentation_lists_every_key_as_it_is() {
    let documentation = include_str!("../docs/configuration.md");
    for key in KEYS {
        let flag = key.flag.map_or_else(|| "none".to_owned(), |flag| format!("`{flag}`"));
        let row = format!(
            "| `{}` | `{}` | {flag} | {} | {} | {} |",
            key.name, key.variable, key.default, key.form, key.help
        );
        assert!(documentation.contains(&row), "docs/configuration.md lacks:\n{row}");
    }
    let rows = documentation.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, KEYS.len(), "docs/configuration.md has rows of keys that are not there");
}
