//! A tenant never gets one more agent while it runs as many as its quota allows.

use conclave_coordinator_core::{Applied, Reply, State};
use conclave_proto::v1::{Command, command::Command as Body};

use super::Check;

/// `command` was applied to what is now `state`, where every tenant may run `most` agents.
pub(super) fn check(
    most: Option<u64>,
    state: &State,
    command: &Command,
    applied: &Applied,
) -> Check {
    let (Some(most), Some(Body::Assign(assign))) = (most, &command.command) else {
        return Ok(());
    };
    let tenant = state.job(&assign.job_id).map(|job| job.tenant.as_str());
    let tenant = tenant.unwrap_or_default();
    let running = state.share(tenant).running_agents;
    if applied.reply != Reply::Ok || running <= most {
        return Ok(());
    }
    Err(format!(
        "agent {} of job {} is the tenant's {running}th that runs: its quota is {most}",
        assign.agent, assign.job_id
    ))
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Assign;

    use super::{super::super::oracle, *};

    #[test]
    fn one_more_than_the_quota_is_found() {
        let (state, job_id) = oracle::running(3);
        let assign = Assign {
            job_id,
            agent: 3,
            ..Assign::default()
        };
        let command = Command {
            command: Some(Body::Assign(assign)),
            ..Command::default()
        };
        let applied = |reply| Applied {
            reply,
            effects: Vec::new(),
        };
        let check = |most, reply| check(most, &state, &command, &applied(reply));
        assert_eq!(check(None, Reply::Ok), Ok(()));
        assert_eq!(check(Some(3), Reply::Ok), Ok(()));
        assert_eq!(check(Some(2), Reply::NotFound), Ok(()), "it was refused");
        assert!(check(Some(2), Reply::Ok).is_err());
    }
}
