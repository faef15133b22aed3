//! A small load, for every build; `load` makes the large one.

use std::time::Duration;

use conclave_tests::load::{Bench, Plan, Tenants, TenantsPlan};

/// What a coordinator may hold after a thousand small jobs, bytes; whether it stays so, `load` shows.
const MEMORY: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_answered_or_refused_with_a_hint_and_nothing_hangs() {
    let mut bench = Bench::start(Plan::crowd(200, 4, 2)).await;
    let mut waves = Vec::new();
    for _ in 0..3 {
        waves.push(bench.wave().await);
    }
    bench.mocks[0].hang(true);
    let hung = bench.wave().await;
    bench.mocks[0].hang(false);
    let deaf = bench.deaf_watchers(8).await.expect("watches");
    let deafened = bench.wave().await;
    drop(deaf);
    assert_eq!(hung.slowed(&waves[2]), None, "a hung worker");
    assert_eq!(
        deafened.slowed(&waves[2]),
        None,
        "watchers that do not read"
    );
    waves.extend([hung, deafened]);
    for wave in &waves {
        assert_eq!(
            wave.answered,
            200,
            "{:?}\n{}",
            wave.failures,
            wave.summary()
        );
    }
    let memory = bench.memory().await;
    let largest = memory.iter().map(|memory| memory.resident).max();
    assert!(largest < Some(MEMORY), "{largest:?} bytes");
    let refusals: usize = waves.iter().map(|wave| wave.refusal.len()).sum();
    assert!(refusals > 0, "200 clients, and room for 150 jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_floods_is_refused_and_slows_nobody_else() {
    let plan = TenantsPlan::flood(100);
    let mut tenants = Tenants::start(plan).await;
    let alone = tenants.steady(Duration::from_secs(3)).await;
    let (beside, flood) = tenants.flooded(Duration::from_secs(6)).await;
    let faults = [&alone.failures, &beside.failures, &flood.failures];
    assert!(faults.iter().all(|faults| faults.is_empty()), "{faults:?}");
    assert_eq!(
        (alone.refused, beside.refused),
        (0, 0),
        "of the steady tenant"
    );
    assert!(
        !flood.refused.is_empty(),
        "{} offered a second",
        flood.offered()
    );
    let [before, now] = [&alone, &beside].map(|met| met.answer.percentile(50));
    // Half as long again, and what other tests on this machine take.
    assert!(
        now < before.mul_f64(1.5) + Duration::from_millis(250),
        "{now:?}, and was {before:?}"
    );
}
