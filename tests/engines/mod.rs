//! Real engines load real models through mounts and give the answers that they give from a local disk.
//!
//! The engines are in `engine`, the models in `models`. Here: each engine on a cold mount of its own; every engine without a registry,
//! once its model was pulled; many processes at once. A reader that is ahead of a slow network is in `slow`.

mod engine;
mod models;
mod slow;

use engine::{ENGINES, Engine};
use models::{FORMS, Form, MODELS, Model};

use crate::support::heavy;
use crate::support::place::Place;
use crate::support::registry::Registry;

/// What `engine` answers to a local copy; it must be the answer that is known, where one is.
fn local(engine: Engine) -> String {
    let said = engine.answer(&Place::new(), &engine.model().folder());
    if let Some(known) = engine.known() {
        assert_eq!(said, known, "{engine:?} on a local copy");
    }
    said
}

/// A fresh mount with a fresh store.
fn mounted(registry: &Registry, model: Model, form: Form, options: &[&str]) -> Place {
    let place = Place::new();
    place.mount(&registry.reference(&model.reference(form)), options);
    place
}

/// Runs `engine` on a cold mount of each form, and on a local copy.
fn through_cold_mounts(engine: Engine) {
    let _alone = heavy();
    let (registry, right) = (models::registry(), local(engine));
    for form in FORMS {
        let place = mounted(&registry, engine.model(), form, &[]);
        assert_eq!(engine.answer(&place, &place.dir()), right, "{engine:?}, {form:?}");
        place.unmount();
    }
}

#[test]
fn safetensors_reads_every_tensor_through_a_map() {
    through_cold_mounts(Engine::Safetensors("mmap"));
}

#[test]
fn safetensors_reads_every_tensor_with_a_read_of_its_own() {
    through_cold_mounts(Engine::Safetensors("pread"));
}

#[test]
fn safetensors_reads_a_file_at_once() {
    through_cold_mounts(Engine::Safetensors("read"));
}

#[test]
fn the_gguf_reader_sees_the_table_that_it_sees_in_a_local_file() {
    through_cold_mounts(Engine::Gguf);
}

#[test]
fn llama_says_through_a_map_what_it_says_from_a_local_file() {
    through_cold_mounts(Engine::Llama("MMAP"));
}

#[test]
fn llama_says_without_a_map_what_it_says_from_a_local_file() {
    through_cold_mounts(Engine::Llama("NONE"));
}

#[test]
fn llama_says_past_the_page_cache_what_it_says_from_a_local_file() {
    through_cold_mounts(Engine::Llama("DIRECT_IO"));
}

#[test]
fn onnx_runtime_finds_its_external_data() {
    through_cold_mounts(Engine::OnnxExternal);
}

#[test]
fn onnx_runtime_reads_a_model_in_one_file() {
    through_cold_mounts(Engine::OnnxAlone);
}

#[test]
fn candle_embeds_a_sentence_as_transformers_does() {
    through_cold_mounts(Engine::Candle);
}

#[test]
fn every_engine_answers_without_a_registry_once_its_model_was_pulled() {
    let _alone = heavy();
    for form in FORMS {
        let mut registry = models::registry();
        let references =
            MODELS.map(|model| (model, registry.reference(&model.reference(form)), Place::new()));
        for (_, reference, place) in &references {
            place.run(["pull", reference]).ok();
        }
        registry.stop();
        let places = references.map(|(model, reference, place)| {
            place.mount(&reference, &[]);
            (model, place)
        });
        for engine in ENGINES {
            let (_, place) = places.iter().find(|(model, _)| *model == engine.model()).unwrap();
            assert_eq!(engine.answer(place, &place.dir()), local(engine), "{engine:?}, {form:?}");
        }
    }
}

#[test]
fn eight_processes_that_load_one_cold_mount_at_once_fetch_the_model_once() {
    let _alone = heavy();
    let (registry, engine) = (models::registry(), Engine::Safetensors("mmap"));
    for form in FORMS {
        let before = registry.settled();
        let place = mounted(&registry, engine.model(), form, &[]);
        std::thread::scope(|scope| {
            let load = || engine.answer(&place, &place.dir());
            let processes: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
            for process in processes {
                assert_eq!(process.join().unwrap(), engine.known().unwrap(), "{form:?}");
            }
        });
        let (fetched, size) = (registry.settled() - before, engine.model().size());
        assert!(fetched <= size * 105 / 100, "{form:?}: {fetched} bytes for a model of {size}");
        place.unmount();
    }
}
