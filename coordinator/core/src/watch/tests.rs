use super::*;

const ALL: usize = usize::MAX;

fn delta(attempt: u32, offset: u32, text: &str) -> TokenDelta {
    TokenDelta {
        agent: 1,
        attempt,
        offset,
        tokens: u32::try_from(text.len()).unwrap(),
        text: text.to_owned(),
        ..TokenDelta::default()
    }
}

fn said(updates: &[Update]) -> Vec<String> {
    let one = |update: &Update| match update {
        Update::Tokens(t) => t.text.clone(),
        Update::Reset(r) => format!("reset {}", r.attempt),
        other => format!("{other:?}"),
    };
    updates.iter().map(one).collect()
}

fn at(attempt: u32, offset: u32) -> Positions {
    Positions::from([(1, Position { attempt, offset })])
}

#[test]
fn a_slow_watcher_gets_all_text_in_fewer_pieces() {
    let mut texts = Texts::default();
    let mut slow = Positions::new();
    for (offset, text) in [(0, "a"), (1, "b"), (2, "c")] {
        assert_eq!(texts.push(delta(1, offset, text)), Pushed::Taken);
    }
    assert_eq!(said(&texts.read(&mut slow, ALL)), ["abc"]);
    assert!(texts.read(&mut slow, ALL).is_empty());
    texts.push(delta(1, 3, "d"));
    assert_eq!(said(&texts.read(&mut slow, ALL)), ["d"]);
}

#[test]
fn a_watcher_that_is_far_behind_gets_so_much_at_once() {
    let mut texts = Texts::default();
    for offset in 0..20 {
        texts.push(delta(1, offset, "a"));
    }
    let other = TokenDelta {
        agent: 2,
        ..delta(1, 0, "b")
    };
    texts.push(other);
    let mut slow = Positions::new();
    let mut pieces = Vec::new();
    loop {
        let updates = texts.read(&mut slow, 8);
        if updates.is_empty() {
            break;
        }
        pieces.push(said(&updates).concat());
    }
    assert_eq!(pieces, ["aaaaaaaa", "aaaaaaaa", "aaaab"]);
}

#[test]
fn a_new_attempt_resets_and_an_older_one_is_ignored() {
    let mut texts = Texts::default();
    let mut watcher = Positions::new();
    texts.push(delta(1, 0, "old"));
    texts.read(&mut watcher, ALL);
    assert!(texts.begin(1, 2));
    assert!(!texts.begin(1, 2), "it has begun");
    assert_eq!(said(&texts.read(&mut watcher, ALL)), ["reset 2"]);
    assert_eq!(texts.push(delta(1, 3, "late")), Pushed::Dropped);
    texts.push(delta(2, 0, "new"));
    assert_eq!(said(&texts.read(&mut watcher, ALL)), ["new"]);
}

#[test]
fn a_watcher_is_never_sent_back_to_an_older_attempt() {
    // A new leader hears of the old attempt first, from a worker that was cut off.
    let mut texts = Texts::default();
    texts.push(delta(1, 0, "old"));
    let mut watcher = at(2, 4);
    assert!(texts.read(&mut watcher, ALL).is_empty());
    assert_eq!(watcher, at(2, 4));
    texts.push(delta(2, 0, "news"));
    texts.push(delta(2, 4, "!"));
    assert_eq!(said(&texts.read(&mut watcher, ALL)), ["!"]);
}

#[test]
fn missing_text_is_asked_for_and_doubled_text_is_dropped() {
    let mut texts = Texts::default();
    assert_eq!(texts.push(delta(1, 0, "ab")), Pushed::Taken);
    assert_eq!(texts.push(delta(1, 5, "f")), Pushed::Missing(2));
    assert_eq!(texts.push(delta(1, 0, "ab")), Pushed::Dropped);
    assert_eq!(texts.push(delta(1, 2, "cd")), Pushed::Taken);
    assert_eq!(said(&texts.read(&mut Positions::new(), ALL)), ["abcd"]);
}

#[test]
fn text_that_is_cut_and_sent_again_counts_once() {
    let mut texts = Texts::default();
    let half = MAX_TEXT / 2;
    for _ in 0..4 {
        texts.push(delta(1, 0, "a"));
        texts.push(delta(1, 1, &"b".repeat(half)));
        // Overlaps the end: everything behind the first token is cut.
        texts.push(delta(1, u32::try_from(half).unwrap(), "cd"));
    }
    let said = said(&texts.read(&mut Positions::new(), ALL));
    assert!(said[0].starts_with('a'), "nothing was dropped as too long");
}

#[test]
fn a_cursor_inside_a_piece_starts_the_agent_anew() {
    let mut texts = Texts::default();
    texts.push(delta(1, 0, "abcd"));
    assert_eq!(said(&texts.read(&mut at(1, 2), ALL)), ["reset 1", "abcd"]);
}

#[test]
fn a_watcher_behind_what_is_kept_is_told_so() {
    let mut texts = Texts::default();
    texts.push(delta(1, 0, "a"));
    let mut slow = Positions::new();
    texts.read(&mut slow, ALL);
    for offset in [1, 3 + MAX_TEXT as u32 / 2] {
        texts.push(delta(1, offset, &"b".repeat(2 + MAX_TEXT / 2)));
    }
    assert!(texts.bytes() <= MAX_TEXT);
    let said = said(&texts.read(&mut slow, ALL));
    assert_eq!(said[0], "reset 1", "its text has a hole: it begins anew");
}

#[test]
fn a_cursor_comes_back_as_it_was_and_a_foreign_one_is_refused() {
    let mut cursor = Cursor {
        event: 7,
        ..Cursor::default()
    };
    cursor.pass(&Update::Tokens(delta(2, 36, "four")));
    assert_eq!((cursor.event, &cursor.positions), (7, &at(2, 40)));
    assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
    assert_eq!(Cursor::decode(&[]).unwrap(), Cursor::default());
    assert!(Cursor::decode(b"\xff\xff\xff").is_err());
}
