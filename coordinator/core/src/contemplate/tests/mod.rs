//! What a job does next, asked of whole jobs.

mod answers;
mod expansion;
mod rounds;

use conclave_proto::v1::Role;

use crate::testkit::World;

fn roles(world: &World) -> Vec<Role> {
    world
        .job("j")
        .agents
        .iter()
        .map(|a| a.spec.role())
        .collect()
}

fn answer(world: &World) -> &str {
    world
        .job("j")
        .answer
        .as_ref()
        .map_or("", |a| a.text.as_str())
}

fn context(world: &World) -> String {
    let round = world.job("j").rounds.last().expect("a round");
    let context = round.context.as_ref().expect("a context");
    let bytes = crate::payload::read(context, &crate::payload::InlineOnly).expect("inline");
    String::from_utf8(bytes.into_owned()).expect("text")
}
