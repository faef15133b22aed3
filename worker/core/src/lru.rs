//! Doubly linked lists threaded through one array, so that a block moves in O(1) and nothing allocates.

/// No neighbour.
const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u32,
    tail: u32,
    len: usize,
}

/// `LISTS` lists over items `0..items`; an item is in at most one list, which the caller remembers.
#[derive(Debug)]
pub(crate) struct Lists<const LISTS: usize> {
    links: Vec<Link>,
    ends: [Ends; LISTS],
}

impl<const LISTS: usize> Lists<LISTS> {
    pub fn new(items: usize) -> Self {
        let none = Link {
            prev: NIL,
            next: NIL,
        };
        let empty = Ends {
            head: NIL,
            tail: NIL,
            len: 0,
        };
        Self {
            links: vec![none; items],
            ends: [empty; LISTS],
        }
    }

    pub fn len(&self, list: usize) -> usize {
        self.ends[list].len
    }

    /// Puts `item`, which is in no list, at the young end.
    pub fn push_back(&mut self, list: usize, item: u32) {
        let ends = &mut self.ends[list];
        self.links[item as usize] = Link {
            prev: ends.tail,
            next: NIL,
        };
        match ends.tail {
            NIL => ends.head = item,
            tail => self.links[tail as usize].next = item,
        }
        ends.tail = item;
        ends.len += 1;
    }

    /// Takes `item` out of `list`, which holds it.
    pub fn remove(&mut self, list: usize, item: u32) {
        let Link { prev, next } = self.links[item as usize];
        let ends = &mut self.ends[list];
        match prev {
            NIL => ends.head = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NIL => ends.tail = prev,
            next => self.links[next as usize].prev = prev,
        }
        ends.len -= 1;
    }

    /// Takes the item at the old end.
    pub fn pop_front(&mut self, list: usize) -> Option<u32> {
        let item = self.ends[list].head;
        if item == NIL {
            return None;
        }
        self.remove(list, item);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_behave_like_queues(ops in prop::collection::vec((0..3u8, 0..2usize, 0..8u32), 0..200)) {
            let mut lists = Lists::<2>::new(8);
            let mut model = [VecDeque::new(), VecDeque::new()];
            for (op, list, item) in ops {
                let held = model.iter().position(|queue| queue.contains(&item));
                match (op, held) {
                    (0, None) => {
                        lists.push_back(list, item);
                        model[list].push_back(item);
                    }
                    (1, Some(list)) => {
                        lists.remove(list, item);
                        model[list].retain(|other| *other != item);
                    }
                    _ => prop_assert_eq!(lists.pop_front(list), model[list].pop_front()),
                }
                prop_assert_eq!(lists.len(0), model[0].len());
                prop_assert_eq!(lists.len(1), model[1].len());
            }
        }
    }
}
