//! `null` in the API's JSON.

use serde::{Deserialize, Deserializer};

/// The API's encoder writes `null` for an empty list that it does not leave out, such as a slice's endpoints.
pub(super) fn is_left_out<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
