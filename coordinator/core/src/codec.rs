//! Commands to and from log entries, with the log version gate (law 1).

use conclave_proto::{
    LOG_VERSION,
    v1::{Command, JobState, Role, command, decide::Next},
};
use prost::Message;

/// Why an entry of the log cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A newer program wrote it: this one must stop, or replicas would drift apart.
    #[error("the log needs version {needs}, this program knows up to {known}: upgrade it")]
    TooNew {
        /// The version that the entry asks for.
        needs: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// The bytes are no command.
    #[error("log entry does not decode: {why}")]
    Broken {
        /// The decoder's words.
        why: String,
    },
    /// The entry holds a command that this program has no name for.
    #[error("log entry holds no known command")]
    Unknown,
    /// The entry holds more than this program reads: a field, or a state of a job. To go on without it
    /// would be to apply another command than the others do.
    #[error("a log entry holds what only a newer program knows: upgrade this one")]
    Foreign,
}

/// The lowest log version that knows this command.
pub fn needed_version(_body: &command::Command) -> u32 {
    // Every command so far came with version 1; later ones get an arm of their own here. Versions 2
    // and 3 changed what the state holds and what applying does, by the state's own version.
    1
}

/// The log version that a program needs to go on behind this command: the command's own, or the
/// one that it raises the cluster to.
pub fn needs(command: &Command) -> u32 {
    let raised = match &command.command {
        Some(command::Command::SetLogVersion(set)) => set.log_version,
        _ => 0,
    };
    command.log_version.max(raised)
}

/// A command with the version that it needs. [`may_propose`] says whether to propose it.
pub fn command(body: command::Command) -> Command {
    Command {
        log_version: needed_version(&body),
        command: Some(body),
    }
}

/// Whether a cluster whose state is at this [`log_version`](crate::State::log_version) knows the
/// command: every member does by then.
pub fn may_propose(command: &Command, log_version: u32) -> bool {
    command.log_version <= log_version
}

/// The entry's bytes.
pub fn encode(command: &Command) -> Vec<u8> {
    command.encode_to_vec()
}

/// The command in an entry.
///
/// # Errors
/// [`CodecError::TooNew`], [`CodecError::Unknown`] and [`CodecError::Foreign`] must end the program; so
/// must [`CodecError::Broken`], which means damage that checksums did not see.
pub fn decode(bytes: &[u8]) -> Result<Command, CodecError> {
    decode_up_to(bytes, LOG_VERSION)
}

/// [`decode`] as a program does that knows log versions up to `known`.
///
/// # Errors
/// As [`decode`].
pub fn decode_up_to(bytes: &[u8], known: u32) -> Result<Command, CodecError> {
    let command = Command::decode(bytes).map_err(|e| CodecError::Broken { why: e.to_string() })?;
    let needs = needs(&command);
    if needs > known {
        return Err(CodecError::TooNew { needs, known });
    }
    if command.command.is_none() {
        return Err(CodecError::Unknown);
    }
    // A message has one encoding here: what is not written again was not read.
    if encode(&command) != bytes || !names_are_known(&command) {
        return Err(CodecError::Foreign);
    }
    Ok(command)
}

/// What a leader alone chooses has a name here. Words of callers and workers, who may be newer, mean the
/// same to every program: what has no name there is what was not said.
fn names_are_known(command: &Command) -> bool {
    let Some(command::Command::Decide(decide)) = &command.command else {
        return true;
    };
    let known = |state| JobState::try_from(state).is_ok();
    match &decide.next {
        Some(Next::StartRound(round)) => {
            let mut agents = round.agents.iter();
            known(round.state) && agents.all(|agent| Role::try_from(agent.role).is_ok())
        }
        Some(Next::EndJob(end)) => known(end.state),
        Some(Next::AwaitReview(_)) | None => true,
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Tick;

    use super::*;

    fn tick() -> Command {
        command(command::Command::Tick(Tick {
            elapsed_ms: 5,
            unix_ms: 7,
            new_term: false,
        }))
    }

    #[test]
    fn a_command_survives_the_log() {
        assert_eq!(decode(&encode(&tick())), Ok(tick()));
    }

    #[test]
    fn a_command_newer_than_the_cluster_is_not_proposed() {
        let newer = Command {
            log_version: 2,
            ..tick()
        };
        assert!(may_propose(&tick(), 1) && may_propose(&newer, 2));
        assert!(!may_propose(&newer, 1), "a member may not know it yet");
    }

    #[test]
    fn a_newer_command_stops_the_program() {
        let newer = Command {
            log_version: LOG_VERSION + 1,
            ..tick()
        };
        assert_eq!(
            decode(&encode(&newer)),
            Err(CodecError::TooNew {
                needs: LOG_VERSION + 1,
                known: LOG_VERSION
            })
        );
        assert_eq!(
            decode_up_to(&encode(&newer), LOG_VERSION + 1),
            Ok(newer),
            "the next program reads it"
        );
    }

    #[test]
    fn a_raise_to_a_newer_version_stops_the_program_at_once() {
        let raise = |log_version| {
            let set = conclave_proto::v1::SetLogVersion { log_version };
            encode(&command(command::Command::SetLogVersion(set)))
        };
        assert!(decode(&raise(LOG_VERSION)).is_ok());
        let (needs, known) = (LOG_VERSION + 1, LOG_VERSION);
        assert_eq!(
            decode(&raise(needs)),
            Err(CodecError::TooNew { needs, known })
        );
    }

    #[test]
    fn a_field_that_only_a_newer_program_knows_stops_this_one() {
        // Field 100 of the entry, and of the command in it.
        let unknown = [0xa0, 0x06, 1];
        let entry = [encode(&tick()), unknown.to_vec()].concat();
        assert_eq!(decode(&entry), Err(CodecError::Foreign));
        let Some(command::Command::Tick(inner)) = tick().command else {
            panic!("it is a tick");
        };
        let entry = |inner: &[u8]| [&[0x08, 1, 0x6a, inner.len() as u8], inner].concat();
        let inner = inner.encode_to_vec();
        assert_eq!(decode(&entry(&inner)), Ok(tick()));
        let inner = [inner, unknown.to_vec()].concat();
        assert_eq!(decode(&entry(&inner)), Err(CodecError::Foreign));
    }

    #[test]
    fn a_state_that_only_a_newer_program_knows_stops_this_one() {
        let ends = |state| {
            let end = conclave_proto::v1::EndJob {
                state,
                ..Default::default()
            };
            let decide = conclave_proto::v1::Decide {
                next: Some(Next::EndJob(end)),
                ..Default::default()
            };
            decode(&encode(&command(command::Command::Decide(decide)))).map(drop)
        };
        assert_eq!(ends(JobState::Done as i32), Ok(()));
        assert_eq!(ends(99), Err(CodecError::Foreign));
    }

    #[test]
    fn words_of_callers_and_workers_without_a_name_stop_nobody() {
        let review = conclave_proto::v1::ReviewJobCommand {
            verdict: 99,
            ..Default::default()
        };
        assert!(decode(&encode(&command(command::Command::ReviewJob(review)))).is_ok());
    }

    #[test]
    fn an_unnamed_command_stops_the_program() {
        let unnamed = Command {
            log_version: 1,
            command: None,
        };
        assert_eq!(decode(&encode(&unnamed)), Err(CodecError::Unknown));
        assert!(matches!(
            decode(&[0xff, 0xff]),
            Err(CodecError::Broken { .. })
        ));
    }
}
