//! Once faults stop, every job ends, every client is answered, every member applies all there is, and
//! every queue empties.

use super::Check;

/// The time to come to rest is over; `why` says what still moves.
pub(super) fn check(rested: bool, why: impl FnOnce() -> String) -> Check {
    if rested { Ok(()) } else { Err(why()) }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Options, world::World};

    #[test]
    fn a_world_whose_jobs_cannot_end_is_found() {
        let options = Options {
            steps: 500,
            ..Options::new(3)
        };
        let mut world = World::new(&options);
        // Nobody computes, and nobody ever will.
        world.crew = 0;
        let outcome = world.run(&options);
        let violation = outcome.violation.expect("its jobs never end");
        assert_eq!(violation.law, "every job ends once faults stop");
        assert!(violation.what.contains("PREPARING") || violation.what.contains("client"));
    }
}
