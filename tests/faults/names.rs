//! A registry's name that cannot be looked up, or leads elsewhere: borne while it passes, and a bounded error where it stays.
//!
//! Each trouble meets the first question, every question, and those of a time, with one reader and with 32, as in
//! [`super::matrix`]. A name is looked up for a new connection only, so the old ones are closed before each.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::join_all;
use weightfs::testing::registry::{Fault, Habits, Registry, Rule};

use super::setting::{FILES, Form, HEAD, Setting, TAIL, Times, is_clear, shared};
use crate::support::heavy;
use crate::support::names::{For, Names, Trouble, alone};

const TIMES: Times = Times { deadline: Duration::from_secs(12), stall: Duration::from_secs(2) };
/// The files of each of the three.
const SHARE: usize = FILES / 3;
/// On loopback, and nobody is there.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);

#[test]
fn a_name_that_cannot_be_looked_up_is_survived_or_is_a_bounded_error() {
    let _alone = heavy();
    let _made = (shared(Form::Packed), shared(Form::Plain));
    alone(|names| async move {
        let troubles = [
            Trouble::Missing,
            Trouble::Failing,
            Trouble::Nothing,
            Trouble::Silence,
            Trouble::Slow(Duration::from_millis(300)),
            Trouble::Elsewhere(NOBODY),
        ];
        let cells = troubles.into_iter().enumerate().flat_map(|(number, trouble)| {
            [(Form::Packed, 1), (Form::Packed, 32), (Form::Plain, 32)].map(|(form, readers)| {
                let name = format!("{form:?}-{readers}-{number}.test").to_lowercase();
                cell(&names, name, trouble, form, readers)
            })
        });
        join_all(cells).await;
    });
}

async fn cell(names: &Names, name: String, trouble: Trouble, form: Form, readers: usize) {
    names.put(&name, Ipv4Addr::LOCALHOST);
    let mut cell = Cell::open(name, form, readers).await;
    let what = format!("{trouble:?}, {form:?}, {readers} readers");
    let name = cell.name.clone();
    let tell = |how_long| names.trouble(&name, trouble, how_long);

    tell(For::One);
    cell.right(0, &format!("{what}, at first")).await;

    tell(For::Ever);
    let before = names.asked(&name);
    if matches!(trouble, Trouble::Slow(_)) {
        cell.right(1, &format!("{what}, every time")).await;
    } else {
        cell.failed(1, &format!("{what}, every time")).await;
    }
    assert!(names.asked(&name) > before, "{what}: nobody looked it up");
    cell.right_as_kept(0, &what).await;
    names.heal(&name);
    cell.right(1, &format!("{what}, healed")).await;

    tell(For::Time(Duration::from_secs(2)));
    cell.right(2, &format!("{what}, for a time")).await;
    cell.setting.end(&what).await;
}

/// A model that is read by the name of its registry.
struct Cell {
    name: String,
    form: Form,
    readers: usize,
    setting: Setting,
}

impl Cell {
    async fn open(name: String, form: Form, readers: usize) -> Self {
        let registry = Registry::start(shared(form).source(), Habits::default()).await.unwrap();
        let host = registry.host().replace("127.0.0.1", &name);
        let setting = Setting::of(registry, &host, TIMES, 1 << 30).await;
        Self { name, form, readers, setting }
    }

    /// All readers at once, over new connections.
    async fn read(&mut self, part: usize) -> Vec<(usize, weightfs::Result<bytes::Bytes>)> {
        self.setting.registry.leave().await;
        self.setting.registry.come_back().await.unwrap();
        self.read_on(part).await
    }

    /// All readers at once.
    async fn read_on(&self, part: usize) -> Vec<(usize, weightfs::Result<bytes::Bytes>)> {
        let reads = (0..self.readers).map(|reader| async move {
            let file = part * SHARE + reader % SHARE;
            let path = &shared(self.form).files[file].path;
            (file, self.setting.read(path, HEAD as u64, TAIL as u64).await)
        });
        join_all(reads).await
    }

    async fn right(&mut self, part: usize, what: &str) {
        let read = self.read(part).await;
        self.are_right(read, what);
    }

    async fn right_as_kept(&self, part: usize, what: &str) {
        let read = self.read_on(part).await;
        self.are_right(read, &format!("{what}, read before"));
    }

    fn are_right(&self, read: Vec<(usize, weightfs::Result<bytes::Bytes>)>, what: &str) {
        for (file, got) in read {
            let got = got.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert!(got == shared(self.form).bytes(file)[HEAD..], "{what}: wrong bytes");
        }
    }

    async fn failed(&mut self, part: usize, what: &str) {
        for (file, got) in self.read(part).await {
            let error = got.err().unwrap_or_else(|| panic!("{what}: as if nothing were"));
            is_clear(&error, &shared(self.form).files[file].path, &self.name, what);
        }
    }
}

#[test]
fn a_redirect_to_a_host_that_is_no_place_for_blobs_is_borne_while_it_passes_and_else_a_bounded_error() {
    let _alone = heavy();
    let _made = shared(Form::Packed);
    alone(|names| async move {
        names.put("registry.test", Ipv4Addr::LOCALHOST);
        names.put("metadata.test", Ipv4Addr::new(169, 254, 169, 254));
        let places = [
            "http://metadata.test/latest/",
            "http://169.254.169.254/latest/",
            "http://nobody.test/blob",
            "http://10.11.12.13/blob",
        ];
        join_all(places.map(refused)).await;
        assert!(names.asked("metadata.test") > 0);
    });
}

async fn refused(place: &'static str) {
    let mut cell = Cell::open("registry.test".to_owned(), Form::Packed, 32).await;
    let redirect = || Rule::always("/blobs/", Fault::RedirectTo(place));
    cell.setting.registry.rule(redirect().first_of_each());
    cell.right(0, &format!("{place}, at first")).await;
    cell.setting.registry.heal();
    cell.setting.registry.rule(redirect());
    cell.failed(1, place).await;
    cell.setting.registry.heal();
    cell.right(1, &format!("{place}, healed")).await;
    cell.setting.end(place).await;
}
