//! Wall clocks that jump. Nobody but deadlines and retention reads them.

use std::time::Duration;

use conclave_proto::v1::{Budget, JobState};

use super::{Site, Step};
use crate::chaos::Arena;
use crate::chaos::clocks::Clocks;

/// Hours of a step: far beyond any deadline, well within the retention.
const HOURS: i64 = 5;
const BETWEEN: Duration = Duration::from_secs(2);

fn clocks(arena: &Arena) -> &Clocks {
    match &arena.site {
        Site::Clocks(clocks) => clocks,
        _ => panic!("the scenario has clocks of its own"),
    }
}

pub(super) fn of_one(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        for hours in [HOURS, -HOURS] {
            let leader = arena.cluster.leader().await;
            arena.fault(&format!(
                "the clock of coordinator {leader}, the leader: {hours:+} h"
            ));
            clocks(arena).step(leader, hours);
            arena.recovered().await;
            a_deadline_holds(arena, &format!("{hours:+} h at the leader")).await;
            arena.run_for(BETWEEN).await;
            // The next one leads on a clock hours apart.
            arena.fault(&format!("SIGKILL coordinator {leader}"));
            arena.cluster.kill_coordinator(leader).await;
            arena.another_leader(leader).await;
            arena.recovered().await;
            a_deadline_holds(arena, &format!("after a leader at {hours:+} h")).await;
            clocks(arena).step(leader, 0);
            arena.cluster.start_coordinator(leader).await;
            arena.until_ready(leader).await;
        }
    })
}

pub(super) fn of_all(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        for hours in [HOURS, 0, -HOURS, 0] {
            arena.fault(&format!("every coordinator's clock: {hours:+} h"));
            clocks(arena).step_all(hours);
            arena.recovered().await;
            a_deadline_holds(arena, &format!("{hours:+} h everywhere")).await;
            arena.run_for(BETWEEN).await;
        }
    })
}

/// A job that is submitted now and has a minute is answered, wherever the
/// clocks were before.
async fn a_deadline_holds(arena: &mut Arena, when: &str) {
    let mut spec = crate::exact_job(7);
    if let Some(policy) = &mut spec.policy {
        (policy.exact, policy.width) = (false, Some(1));
    }
    spec.budget = Some(Budget {
        thought_tokens: Some(8),
        answer_tokens: Some(4),
        deadline_ms: 60_000,
        ..Budget::default()
    });
    let client = arena.cluster.client();
    let key = format!("deadline, {when}");
    let id = client.submit(&key, &spec).await.expect("accepted");
    let job = client.finished(&id).await;
    if job.state() != JobState::Done {
        let (state, why) = (job.state(), job.message);
        arena.accuse(format!(
            "a job with a minute ended {state:?} ({why}): {when}"
        ));
    }
}
