//! Each target over its corpus and a fixed number of mutations: the same inputs on every machine.

use conclave_fuzz::{seeded, targets};

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let target = &targets::$name::TARGET;
                seeded::run(target, 1, seeded::Until::Inputs(target.inputs));
            }
        )*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let known: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
            assert_eq!(run.as_slice(), known);
        }
    };
}

targets! {
    answer_constraint,
    audit_file,
    chat_template,
    coordinator_config,
    gguf,
    identity,
    job_spec,
    jwt,
    log_entries,
    model_folder,
    prepare,
    quotas_file,
    raft_messages,
    snapshot,
    snapshot_file,
    tokens_file,
    watch_cursor,
    wheel,
    worker_config,
    worker_messages,
}
