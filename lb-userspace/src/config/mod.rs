//! Configuration files.

/// What the configuration asks for.
#[derive(Clone, Debug, Default)]
pub struct Config {}
