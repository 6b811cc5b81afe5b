//! A part of a container image: some of its layers, one after the other.
//!
//! What the lowest layers of an image come to is what containers call a chain; what lies on others can be shown without
//! them where it takes nothing of them away. Only words: who opens an artifact [cuts](Artifact::cut) it.

use std::fmt;
use std::str::FromStr;

use super::Artifact;
use super::artifact::{INDEX_KEY, Manner};
use crate::error::{Error, Kind, Result};

/// From which layer to which, both among them, counted from 1 at the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    first: usize,
    last: usize,
}

impl Cut {
    /// From `first` to `last`; `None` where there is no such stretch.
    #[must_use]
    pub fn new(first: usize, last: usize) -> Option<Self> {
        (1 <= first && first <= last).then_some(Self { first, last })
    }
}

impl FromStr for Cut {
    type Err = String;

    /// `N` or `N-M`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let cut = first.parse().ok().zip(last.parse().ok()).and_then(|(first, last)| Self::new(first, last));
        cut.ok_or_else(|| format!("{text:?} is no number of a layer, nor two as 1-3"))
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Artifact {
    /// Leaves only these layers of a container image shown. Marks in them, which take away what layers below have, are
    /// refused when they are read, unless nothing below is left out.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for what is no container image; [`Kind::Invalid`] where it has fewer layers.
    pub fn cut(&mut self, cut: Cut) -> Result<()> {
        if !self.is_layered() {
            let doing = format!("layers {cut} of the dialect '{}' cannot be shown alone", self.family.name());
            return Err(Error::new(Kind::Unsupported, doing).hint("only a container image's can"));
        }
        let count = self.visible().count();
        if cut.last > count {
            return Err(Error::new(Kind::Invalid, format!("there is no layer {}: it has {count}", cut.last)));
        }
        if cut.last < count {
            // What an index beside the image says holds for all of it: of a file that a later layer replaces it knows no more.
            self.annotations.remove(INDEX_KEY);
        }
        let shown = self.layers.iter_mut().filter(|layer| !layer.hidden);
        for (number, layer) in (1..).zip(shown) {
            layer.hidden = number < cut.first || number > cut.last;
            if cut.first > 1 {
                layer.members.manner = Manner::Above;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::artifact::{
        INDEX_DIGEST_KEY, INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY, INDEX_SIZE_KEY, INDEX_VERSION,
    };
    use crate::oci::manifest::Manifest;
    use crate::oci::{Descriptor, Digest};

    fn layer(number: u8) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.docker.image.rootfs.diff.tar".to_owned(),
            digest: Digest::of(&[number]),
            size: 1,
            annotations: Default::default(),
        }
    }

    fn image(count: u8) -> Artifact {
        Artifact::read(Manifest { layers: (1..=count).map(layer).collect(), ..Manifest::default() }).unwrap()
    }

    #[test]
    fn a_cut_leaves_its_layers_and_says_what_lies_below_is_not_shown() {
        let shown = |text: &str| {
            let mut image = image(3);
            image.cut(text.parse().unwrap()).unwrap();
            let layers: Vec<_> = image.visible().map(|layer| layer.descriptor.digest.clone()).collect();
            (layers, image.visible().next().unwrap().members.manner)
        };
        let digest = |number: u8| Digest::of(&[number]);
        assert_eq!(shown("1-2"), (vec![digest(1), digest(2)], Manner::Layered));
        assert_eq!(shown("3"), (vec![digest(3)], Manner::Above));
        assert_eq!(image(3).cut("2-4".parse().unwrap()).unwrap_err().kind(), Kind::Invalid);
        let mut model = Artifact::read(Manifest::default()).unwrap();
        assert_eq!(model.cut("1".parse().unwrap()).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn what_an_index_says_of_the_whole_image_is_not_believed_of_a_part_of_it() {
        for (text, stays) in [("1-2", false), ("1-3", true), ("2-3", true)] {
            let mut image = image(3);
            image.annotations.insert(INDEX_KEY.to_owned(), "v1".to_owned());
            image.cut(text.parse().unwrap()).unwrap();
            assert_eq!(image.annotations.contains_key(INDEX_KEY), stays, "{text}");
        }
    }

    #[test]
    fn no_index_counts_for_a_part_of_an_image_however_the_image_has_it() {
        let digest = Digest::of(b"index").to_string();
        let pins = [
            (INDEX_KEY, INDEX_VERSION),
            (INDEX_HEAD_DIGEST_KEY, &*digest),
            (INDEX_HEAD_SIZE_KEY, "1"),
            (INDEX_DIGEST_KEY, &*digest),
            (INDEX_SIZE_KEY, "1"),
        ];
        let pins = || pins.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mark = |media_type: &str| Descriptor {
            media_type: media_type.to_owned(),
            annotations: pins(),
            ..layer(9)
        };
        let layers = || (1..=3).map(layer);
        let beside = Manifest { layers: layers().collect(), annotations: pins(), ..Manifest::default() };
        let within =
            |mark: Descriptor| Manifest { layers: layers().chain([mark]).collect(), ..Manifest::default() };
        for (manifest, counts) in [
            (beside, true),
            (within(mark("y.raw")), false),
            (within(mark("application/vnd.docker.image.rootfs.diff.tar")), false),
        ] {
            let mut image = Artifact::read(manifest).unwrap();
            assert_eq!(image.bound_index().unwrap().is_some(), counts);
            assert_eq!(image.visible().count(), 3);
            image.cut("1".parse().unwrap()).unwrap();
            assert_eq!(image.bound_index().unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_stretch_of_layers_is_refused() {
        for text in ["", "0", "2-1", "-1", "1-", "1-2-3", "a"] {
            assert!(text.parse::<Cut>().is_err(), "{text}");
        }
        assert_eq!("2-3".parse::<Cut>().unwrap().to_string(), "2-3");
    }
}
