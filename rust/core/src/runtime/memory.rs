//! How much memory this process may still take, by the machine and by the control groups it is in.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes that can be taken without swapping and without reaching a control group's limit; None if the system does not say.
///
/// What the page cache holds counts as free, since it gives way.
#[must_use]
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    [machine, left_in_groups(&own, Path::new(GROUPS))].into_iter().flatten().min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the tightest of the groups that a process is in leaves, by the text of its `/proc/self/cgroup`; None without a limit.
fn left_in_groups(own: &str, mount: &Path) -> Option<u64> {
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            match controllers {
                "" => Some((mount.to_path_buf(), path, "memory.max", "anon ")),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    Some((mount.join("memory"), path, "memory.limit_in_bytes", "total_rss "))
                }
                _ => None,
            }
        })
        .flat_map(|(root, path, limit, used)| {
            groups(&root, path).into_iter().filter_map(move |group| left_in(&group, limit, used)).collect::<Vec<_>>()
        })
        .min()
}

/// A group and those that it is in. In a container the path may be that outside, of which only the root is there.
fn groups(root: &Path, path: &str) -> Vec<PathBuf> {
    let group = root.join(path.trim_start_matches('/'));
    group.ancestors().take_while(|group| group.starts_with(root)).map(Path::to_path_buf).collect()
}

fn left_in(group: &Path, limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = fs::read_to_string(group.join(limit)).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let taken = stat.lines().find_map(|line| line.strip_prefix(used)?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_of_nested_groups_counts() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let inner = folder.path().join("outer/inner");
        fs::create_dir_all(&inner)?;
        fs::write(inner.join("memory.max"), "max\n")?;
        fs::write(folder.path().join("outer/memory.max"), "1000\n")?;
        fs::write(folder.path().join("outer/memory.stat"), "anon 300\nfile 600\n")?;
        assert_eq!(left_in_groups("0::/outer/inner\n", folder.path()), Some(700));
        assert_eq!(left_in_groups("0::/elsewhere\n", folder.path()), None);
        Ok(())
    }

    #[test]
    fn the_older_layout_is_understood() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("memory"))?;
        fs::write(folder.path().join("memory/memory.limit_in_bytes"), "5000\n")?;
        fs::write(folder.path().join("memory/memory.stat"), "total_rss 1000\n")?;
        assert_eq!(left_in_groups("4:memory:/docker/abc\n3:cpu,cpuacct:/\n", folder.path()), Some(4000));
        Ok(())
    }

    #[test]
    fn meminfo_is_in_kilobytes() {
        assert_eq!(mem_available("MemTotal:  9 kB\nMemAvailable:    2 kB\n"), Some(2048));
        assert_eq!(mem_available("MemTotal:  9 kB\n"), None);
    }
}
