//! No command is newer than the replicated log version, and no program applies one that is newer
//! than itself: it stops, and says that it is to be upgraded.

use conclave_coordinator_core::codec;
use conclave_proto::v1::Command;

use super::Check;

/// A node whose program knows versions up to `speaks` is about to apply a command on a state of log
/// version `agreed`.
pub(super) fn meets(node: u64, speaks: u32, agreed: u32, command: &Command) -> Check {
    let version = command.log_version;
    if version > agreed {
        return Err(format!(
            "coordinator {node}: a command of version {version} while {agreed} was agreed on"
        ));
    }
    let needs = codec::needs(command);
    if needs > speaks {
        return Err(format!(
            "coordinator {node}: its program knows {speaks} and applies what needs {needs}"
        ));
    }
    Ok(())
}

/// A program that is too old stops with these words.
pub(super) fn stops(node: u64, why: &str) -> Check {
    if why.contains("upgrade it") {
        Ok(())
    } else {
        Err(format!(
            "coordinator {node} stops without saying what to do: {why}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{SetLogVersion, Tick, command::Command as Body};

    use super::*;

    #[test]
    fn a_command_that_came_too_early_is_found() {
        let tick = |log_version| Command {
            log_version,
            command: Some(Body::Tick(Tick::default())),
        };
        assert_eq!(meets(1, 2, 2, &tick(2)), Ok(()));
        assert!(meets(1, 2, 1, &tick(2)).is_err(), "nobody agreed on it");
        assert!(meets(1, 1, 2, &tick(2)).is_err(), "the program is too old");
        let raise = codec::command(Body::SetLogVersion(SetLogVersion { log_version: 2 }));
        assert_eq!(meets(1, 2, 1, &raise), Ok(()));
        assert!(meets(1, 1, 1, &raise).is_err(), "it could not go on");
        assert!(stops(1, "no").is_err());
    }
}
