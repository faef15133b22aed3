//! Coordinator shell: sockets, disk, clock.
