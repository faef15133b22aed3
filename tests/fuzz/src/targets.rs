//! One parser a file, in the order of their names.

pub mod answer_constraint;
pub mod audit_file;
pub mod chat_template;
pub mod coordinator_config;
pub mod gguf;
mod history;
pub mod identity;
pub mod job_spec;
pub mod jwt;
pub mod log_entries;
mod model;
pub mod model_folder;
pub mod prepare;
pub mod quotas_file;
pub mod raft_messages;
pub mod snapshot;
pub mod snapshot_file;
pub mod tokens_file;
pub mod watch_cursor;
pub mod wheel;
pub mod worker_config;
pub mod worker_messages;

use crate::Target;

/// Every target.
pub const ALL: &[Target] = &[
    answer_constraint::TARGET,
    audit_file::TARGET,
    chat_template::TARGET,
    coordinator_config::TARGET,
    gguf::TARGET,
    identity::TARGET,
    job_spec::TARGET,
    jwt::TARGET,
    log_entries::TARGET,
    model_folder::TARGET,
    prepare::TARGET,
    quotas_file::TARGET,
    raft_messages::TARGET,
    snapshot::TARGET,
    snapshot_file::TARGET,
    tokens_file::TARGET,
    watch_cursor::TARGET,
    wheel::TARGET,
    worker_config::TARGET,
    worker_messages::TARGET,
];
