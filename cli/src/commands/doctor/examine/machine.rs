//! What a coordinator's machine and files are like: clock, disk, certificate.

use conclave_proto::v1::{RefusedFile, StatusResponse};

use super::{Answer, Findings, Level};

/// How far clocks may be apart, ms: to be noted, and to be mended.
const APART_MS: (i64, i64) = (1_000, 60_000);
const DAY_S: u64 = 24 * 3_600;
/// A certificate that ends within so many days: to be noted, and to be renewed now.
const ENDS_DAYS: (u64, u64) = (30, 7);

pub(super) fn clocks(
    address: &str,
    answer: &Answer,
    leader: &str,
    leading: &Answer,
    found: &mut Findings,
) {
    if answer.status.unix_ms == 0 || leading.status.unix_ms == 0 {
        return;
    }
    let apart = (answer.ahead_ms() - leading.ahead_ms()).abs();
    let blur = (answer.took + leading.took).as_millis();
    let apart = apart - i64::try_from(blur).unwrap_or(i64::MAX);
    let level = match apart {
        apart if apart > APART_MS.1 => Level::Problem,
        apart if apart > APART_MS.0 => Level::Note,
        _ => return,
    };
    found.add(
        level,
        address,
        format!(
            "its clock is {:.1} s or more from that of {leader}",
            apart as f64 / 1e3
        ),
        "keep NTP running on every machine",
    );
}

pub(super) fn disk(address: &str, status: &StatusResponse, found: &mut Findings) {
    let (free, reserve) = (status.disk_free_bytes, status.disk_reserve_bytes);
    if reserve == 0 || free >= reserve.saturating_mul(2) {
        return;
    }
    let room = format!(
        "{} MiB of its disk are free, the reserve is {} MiB",
        free >> 20,
        reserve >> 20
    );
    let cure =
        "lower retention_hours or retention_bytes, or grow the disk; delete nothing in data_dir";
    if free < reserve {
        found.problem(
            address,
            format!("{room}: as leader it refuses submissions"),
            cure,
        );
    } else {
        found.note(address, room, cure);
    }
}

/// Files that it was to read again, and could not use.
pub(super) fn files(about: &str, refused: &[RefusedFile], found: &mut Findings) {
    for file in refused {
        let paths = file.paths.join(", ");
        found.problem(
            about,
            format!(
                "{} changed and cannot be used, what it said before goes on: {}",
                file.setting, file.why
            ),
            format!(
                "mend {paths} there: it is read again within seconds, without a restart (a restart \
                 would fail on it)"
            ),
        );
    }
}

/// A certificate is read again when its file changes: what is told is what callers are shown now.
pub(super) fn certificate(
    address: &str,
    status: &StatusResponse,
    here_unix_ms: i64,
    found: &mut Findings,
) {
    let ends = status.certificate_expires_unix_s;
    let now = u64::try_from(here_unix_ms / 1_000).unwrap_or_default();
    let left = ends.saturating_sub(now);
    let level = match left / DAY_S {
        _ if ends == 0 => return,
        days if days < ENDS_DAYS.1 => Level::Problem,
        days if days < ENDS_DAYS.0 => Level::Note,
        _ => return,
    };
    let what = if left == 0 {
        "its certificate has ended: who does not know this node already cannot reach it".to_owned()
    } else {
        format!(
            "its certificate ends in {:.1} days",
            left as f64 / DAY_S as f64
        )
    };
    found.add(
        level,
        address,
        what,
        "put a new one into cert_file, and its key into key_file: they are read again within seconds, without a \
         restart (docs/OPERATIONS.md, \"Rotate certificates\")",
    );
}
