//! The whole binary, as people meet it: usage, bad input, and what is left when the agent is gone.

mod agent;
mod check;
mod clients;
mod documents;
mod listing;
mod place;
mod usage;
