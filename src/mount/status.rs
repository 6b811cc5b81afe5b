//! What there is to say of models that are mounted, one by one and together.
//!
//! Asked through a mount's process. Nothing here asks the network.

use std::collections::BTreeMap;

use super::answers::Answers;
use super::{Native, Shown, Status};
use crate::content::Standing;
use crate::metrics::Metrics;

impl Answers {
    /// What there is to say of the model now. Reads a small file of the store for each file of the model, so it blocks.
    pub(super) fn status(&self) -> Status {
        let model = &self.model;
        let share = model.loader.share();
        Status {
            reference: model.reference.to_string(),
            digest: model.digest.to_string(),
            kept: share.kept,
            total: share.total,
            integrity: model.integrity().to_owned(),
            standing: model.standing().to_owned(),
            poisoned: self.poisoned(),
            refused: model.refused(),
            native: self.count_native(),
            metrics: counts(&model.metrics),
            models: Vec::new(),
        }
    }

    fn poisoned(&self) -> Vec<String> {
        let model = &self.model;
        let layers = model.index.layers.iter().enumerate();
        let poisoned: Vec<bool> =
            layers.map(|(layer, _)| model.loader.standing(layer) == Standing::Poisoned).collect();
        if !poisoned.contains(&true) {
            return Vec::new();
        }
        let files = model.tree.nodes().filter_map(|(id, _)| {
            let extent = model.extent(id)?;
            let layer = model.index.layers.get(extent.layer)?;
            let bad = poisoned.get(extent.layer).copied().unwrap_or(false);
            bad.then(|| format!("{} ({})", model.tree.path(id), layer.blob.digest))
        });
        files.collect()
    }
}

fn counts(metrics: &Metrics) -> BTreeMap<String, u64> {
    metrics.snapshot().into_iter().map(|counter| (counter.name.to_owned(), counter.value)).collect()
}

impl Status {
    /// That of a mount that shows no model yet, by the name `reference`, whose models count in `metrics`.
    pub(super) fn of_none(reference: String, metrics: &Metrics) -> Self {
        Self {
            reference,
            digest: String::new(),
            kept: 0,
            total: 0,
            integrity: "strict".to_owned(),
            standing: "verified".to_owned(),
            poisoned: Vec::new(),
            refused: Vec::new(),
            native: Native::default(),
            metrics: counts(metrics),
            models: Vec::new(),
        }
    }

    /// Adds the model that is shown as the folder `name`: sums, and of integrity and standing the weakest. Counters are those of
    /// all models together already.
    pub(super) fn add(&mut self, name: &str, one: Self) {
        self.kept = self.kept.saturating_add(one.kept);
        self.total = self.total.saturating_add(one.total);
        if one.integrity != "strict" {
            self.integrity = one.integrity;
        }
        let weight =
            |standing: &str| ["verified", "deferred", "poisoned"].iter().position(|of| *of == standing);
        if weight(&one.standing) > weight(&self.standing) {
            self.standing = one.standing;
        }
        let within = |text: String| format!("{name}: {text}");
        self.poisoned.extend(one.poisoned.into_iter().map(within));
        self.refused.extend(one.refused.into_iter().map(within));
        self.native.add(one.native);
        self.models.push(Shown { name: name.to_owned(), reference: one.reference, digest: one.digest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_models_the_sums_are_said_and_the_weakest_standing() {
        let one = |standing: &str, bytes: u64| Status {
            kept: bytes,
            total: bytes,
            standing: standing.to_owned(),
            poisoned: (standing == "poisoned").then(|| "w.bin".to_owned()).into_iter().collect(),
            ..Status::of_none("r.io/a/b:v1".to_owned(), &Metrics::default())
        };
        let mut all = Status::of_none("csi-1".to_owned(), &Metrics::default());
        for (name, standing) in [("a", "deferred"), ("b", "poisoned"), ("c", "verified")] {
            all.add(name, one(standing, 5));
        }
        assert_eq!((all.kept, all.total, &*all.standing), (15, 15, "poisoned"));
        assert_eq!((&all.poisoned[..], all.models.len()), (&["b: w.bin".to_owned()][..], 3));
        assert_eq!(all.reference, "csi-1");
    }
}
