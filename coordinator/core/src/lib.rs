//! Pure replicated core: state machine, contemplation, placement, raft node.
