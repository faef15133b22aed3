//! Commands to and from log entries, with the log version gate (law 1).

use conclave_proto::{
    LOG_VERSION,
    v1::{Command, command},
};
use prost::Message;

/// Why an entry of the log cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A newer program wrote it: this one must stop, or replicas would drift apart.
    #[error("the log needs version {needs}, this program knows up to {LOG_VERSION}: upgrade it")]
    TooNew {
        /// The version that the entry asks for.
        needs: u32,
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
}

/// The lowest log version that knows this command.
pub fn needed_version(_body: &command::Command) -> u32 {
    // Every command so far came with version 1; later ones get an arm of their own here.
    1
}

/// A command with the version that it needs. Propose it only if the state's
/// [`log_version`](crate::State::log_version) is at least that.
pub fn command(body: command::Command) -> Command {
    Command {
        log_version: needed_version(&body),
        command: Some(body),
    }
}

/// The entry's bytes.
pub fn encode(command: &Command) -> Vec<u8> {
    command.encode_to_vec()
}

/// The command in an entry.
///
/// # Errors
/// [`CodecError::TooNew`] and [`CodecError::Unknown`] must end the program; so must
/// [`CodecError::Broken`], which means damage that checksums did not see.
pub fn decode(bytes: &[u8]) -> Result<Command, CodecError> {
    let command = Command::decode(bytes).map_err(|e| CodecError::Broken { why: e.to_string() })?;
    if command.log_version > LOG_VERSION {
        return Err(CodecError::TooNew {
            needs: command.log_version,
        });
    }
    if command.command.is_none() {
        return Err(CodecError::Unknown);
    }
    Ok(command)
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
    fn a_newer_command_stops_the_program() {
        let newer = Command {
            log_version: LOG_VERSION + 1,
            ..tick()
        };
        assert_eq!(
            decode(&encode(&newer)),
            Err(CodecError::TooNew {
                needs: LOG_VERSION + 1
            })
        );
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
