//! A tag that comes to name another model, and a digest that comes to name other bytes.

use std::time::Duration;

use weightfs::Kind;
use weightfs::testing::registry::{Fault, Habits, Rule};

use super::setting::{Artifact, Form, Setting, Times};
use crate::support::pack::Packing;

const TIMES: Times = Times { deadline: Duration::from_secs(3), stall: Duration::from_secs(2) };
const SIZE: usize = (1 << 20) + 777;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_whose_tag_moves_stays_what_it_was_and_who_opens_it_later_gets_the_other() {
    for form in [Form::Packed, Form::Plain] {
        let old = Artifact::of(3, SIZE, Packing::Raw, form);
        let new = Artifact::of(2, SIZE / 2, Packing::Raw, form);
        let both = old.with(&new);
        let setting = Setting::open(both.source(), Habits::default(), TIMES, 1 << 30).await;
        setting.read(&old.files[0].path, 0, SIZE as u64).await.unwrap();
        setting.registry.rule(Rule::always("/manifests/v1", Fault::Instead(new.manifest())));
        // One that is kept, one that is not.
        for file in [0, 1] {
            let got = setting.read(&old.files[file].path, 0, SIZE as u64).await.unwrap();
            assert!(got == old.bytes(file), "{form:?}, {file}");
        }
        let (later, _store) = setting.anew().await.unwrap();
        assert!(
            later.tree.find(&new.files[1].path).is_some() && later.tree.find(&old.files[2].path).is_none()
        );
        let got = setting.read(&old.files[2].path, 0, SIZE as u64).await.unwrap();
        assert!(got == old.bytes(2), "{form:?}: also after somebody has opened the other");
        later.close().await;
        setting.end(&format!("{form:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_is_another_under_the_same_digest_is_never_opened() {
    let (old, new) = (
        Artifact::of(2, SIZE, Packing::Raw, Form::Packed),
        Artifact::of(2, SIZE / 2, Packing::Raw, Form::Packed),
    );
    let both = old.with(&new);
    let setting = Setting::open(both.source(), Habits::default(), TIMES, 1 << 30).await;
    setting.registry.rule(Rule::always("/manifests/", Fault::Swap(new.manifest())));
    let Err(error) = setting.anew().await else {
        panic!("other bytes under the digest that the answer names")
    };
    assert!(matches!(error.kind(), Kind::Protocol | Kind::Integrity), "{error:?}");
    setting.registry.heal();
    let (again, _store) = setting.anew().await.unwrap();
    again.close().await;
    setting.end("swapped").await;
}
