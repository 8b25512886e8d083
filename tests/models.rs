//! The worker's models against what is not ours: the vendors' own types of requests, and a server that fails as providers
//! do and judges what its clients make of it. The program itself runs, retries included.

#[path = "models/faults.rs"]
mod faults;
#[path = "models/harness.rs"]
mod harness;
#[path = "models/openai_requests.rs"]
mod openai_requests;
#[path = "models/recording.rs"]
mod recording;
#[path = "models/requests.rs"]
mod requests;
