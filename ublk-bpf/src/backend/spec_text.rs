//! A backing as the command line writes it, for records.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

use super::spec::Spec;

pub(crate) fn serialize<S: Serializer>(spec: &Spec, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(spec)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spec, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(Error::custom)
}
