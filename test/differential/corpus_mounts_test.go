package differential

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func link(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// bound is a case with a directory that is mounted at /mnt with options.
func bound(name string, options ...string) Case {
	return Case{name, func(t testing.TB, b *Bundle) {
		b.File(t, "data/file", "content")
		b.Mkdir(t, "data/below")
		b.Mount("/mnt", "bind", b.Path("data"), options...)
		b.Env("INSIDE_TOUCH", "/mnt /mnt/below /mnt/file")
	}}
}

// memory is a case with a tmpfs at /mnt with options.
func memory(name string, options ...string) Case {
	return Case{name, func(t testing.TB, b *Bundle) {
		b.Mount("/mnt", "tmpfs", "tmpfs", options...)
		b.Env("INSIDE_TOUCH", "/mnt")
	}}
}

func mountCases() []Case {
	cases := []Case{
		bound("bind", "bind"), bound("bind-rbind", "rbind"), bound("bind-ro", "bind", "ro"), bound("bind-rbind-ro", "rbind", "ro"),
		bound("bind-rro", "rbind", "rro"), bound("bind-rw", "bind", "ro", "rw"), bound("bind-no-option"),
		bound("bind-private", "bind", "private"), bound("bind-rprivate", "rbind", "rprivate"), bound("bind-slave", "bind", "slave"),
		bound("bind-rslave", "rbind", "rslave"), bound("bind-shared", "bind", "shared"), bound("bind-rshared", "rbind", "rshared"),
		bound("bind-unbindable", "bind", "unbindable"), bound("bind-runbindable", "rbind", "runbindable"),
		bound("bind-nosuid", "bind", "nosuid", "nodev", "noexec"), bound("bind-noatime", "bind", "noatime", "nodiratime"),
		bound("bind-strictatime", "bind", "strictatime"), bound("bind-relatime", "bind", "relatime"), bound("bind-suid", "bind", "suid", "dev", "exec"),
		bound("bind-nosymfollow", "bind", "nosymfollow"), bound("bind-recursive-flags", "rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"),
		bound("bind-rnosymfollow", "rbind", "rnosymfollow"), bound("bind-sync", "bind", "sync"), bound("bind-data", "bind", "size=1m"),
		bound("bind-unknown-option", "bind", "bogus"), bound("bind-rrelatime", "rbind", "rrelatime"), bound("bind-rstrictatime", "rbind", "rstrictatime"),
		bound("bind-idmap-no-mapping", "bind", "idmap"), bound("bind-ro-shared", "rbind", "ro", "rshared"), bound("bind-defaults", "bind", "defaults"),
		bound("bind-twice", "bind", "rbind"), bound("bind-rnorelatime", "rbind", "rnorelatime"), bound("bind-loud", "bind", "loud"), bound("bind-silent", "bind", "silent"),
		bound("bind-copyup", "bind", "tmpcopyup"),
		memory("tmpfs"), memory("tmpfs-size", "size=65536k"), memory("tmpfs-mode", "mode=0700"), memory("tmpfs-owner", "uid=1000", "gid=1000"),
		memory("tmpfs-ro", "ro"), memory("tmpfs-flags", "nosuid", "nodev", "noexec", "noatime"), memory("tmpfs-inodes", "nr_inodes=100"),
		memory("tmpfs-bad-size", "size=many"), memory("tmpfs-unknown", "bogus=1"), memory("tmpfs-huge", "huge=never"), memory("tmpfs-size-percent", "size=50%"),
		memory("tmpfs-sync", "sync", "dirsync", "lazytime"), memory("tmpfs-shared", "shared"), memory("tmpfs-slave", "rslave"), memory("tmpfs-private", "private"),
		memory("tmpfs-rro", "rro"), memory("tmpfs-strictatime", "strictatime"), memory("tmpfs-mand", "mand"), memory("tmpfs-iversion", "iversion"),
		memory("tmpfs-inode64", "inode64"), memory("tmpfs-mpol", "mpol=local"),
		{"tmpfs-over-directory", func(t testing.TB, b *Bundle) {
			b.File(t, "rootfs/var/file", "x")
			os.Chmod(b.Path("rootfs/var"), os.ModeSticky|0o770)
			os.Chown(b.Path("rootfs/var"), 12, 13)
			b.Mount("/var", "tmpfs", "tmpfs")
		}},
		{"tmpfs-copy-up", func(t testing.TB, b *Bundle) {
			b.File(t, "rootfs/var/deep/file", "x")
			link(t, "deep/file", b.Path("rootfs/var/link"))
			os.Chmod(b.Path("rootfs/var/deep"), os.ModeSetgid|0o750)
			os.Chown(b.Path("rootfs/var/deep/file"), 12, 13)
			b.Mount("/var", "tmpfs", "tmpfs", "tmpcopyup")
			b.Env("INSIDE_READ", "/var/deep/file")
		}},
		{"tmpfs-copy-up-ro", func(t testing.TB, b *Bundle) {
			b.File(t, "rootfs/var/file", "x")
			b.Mount("/var", "tmpfs", "tmpfs", "tmpcopyup", "ro", "mode=0711")
		}},
		{"tmpfs-below-tmpfs", func(t testing.TB, b *Bundle) {
			b.Mount("/a", "tmpfs", "first")
			b.Mount("/a/b/c", "tmpfs", "second")
			b.Mount("/a/b", "tmpfs", "third")
		}},
		{"bind-unbindable-on-shared", func(t testing.TB, b *Bundle) {
			b.Mount("/mnt", "bind", b.Mkdir(t, "data"), "bind", "shared")
			b.Mount("/mnt", "bind", b.Mkdir(t, "more"), "bind", "unbindable")
		}},
		{"bind-file", func(t testing.TB, b *Bundle) {
			b.Mount("/etc/resolv.conf", "bind", b.File(t, "resolv", "nameserver 192.0.2.1\n"), "rbind", "ro")
			b.Env("INSIDE_READ", "/etc/resolv.conf")
			b.Env("INSIDE_TOUCH", "/etc/resolv.conf")
		}},
		{"bind-file-over-file", func(t testing.TB, b *Bundle) {
			b.Mount("/etc/passwd", "bind", b.File(t, "other", "other\n"), "bind")
			b.Env("INSIDE_READ", "/etc/passwd")
		}},
		{"bind-file-new-directory", func(t testing.TB, b *Bundle) {
			b.Mount("/new/deep/file", "bind", b.File(t, "other", "other\n"), "bind")
		}},
		{"bind-directory-over-file", func(t testing.TB, b *Bundle) {
			b.Mount("/etc/passwd", "bind", b.Mkdir(t, "data"), "bind")
		}},
		{"bind-file-over-directory", func(t testing.TB, b *Bundle) {
			b.Mount("/etc", "bind", b.File(t, "other", ""), "bind")
		}},
		{"bind-missing", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "bind", b.Path("nothing"), "bind") }},
		{"bind-relative-source", func(t testing.TB, b *Bundle) {
			b.File(t, "data/file", "x")
			b.Mount("/mnt", "bind", "data", "bind")
		}},
		{"bind-source-link", func(t testing.TB, b *Bundle) {
			b.File(t, "data/file", "x")
			link(t, "data", b.Path("link"))
			b.Mount("/mnt", "bind", b.Path("link"), "bind")
		}},
		{"bind-type-none", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "none", b.Mkdir(t, "data"), "rbind") }},
		{"bind-type-empty", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "", b.Mkdir(t, "data"), "bind") }},
		{"bind-type-other", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "whatever", b.Mkdir(t, "data"), "bind") }},
		{"bind-device", func(t testing.TB, b *Bundle) { b.Mount("/dev/host-null", "bind", "/dev/null", "bind") }},
		{"bind-socket", func(t testing.TB, b *Bundle) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			b.check(t, err)
			defer unix.Close(fd)
			b.check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: b.Path("socket")}))
			b.Mount("/run/socket", "bind", b.Path("socket"), "bind")
		}},
		{"bind-tree", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "bind", "/dev", "rbind", "ro") }},
		{"bind-tree-rro", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "bind", "/dev", "rbind", "rro") }},
		{"bind-tree-shallow", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "bind", "/dev", "bind", "ro") }},
		{"bind-tree-slave", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "bind", "/dev", "rbind", "rslave") }},
		{"bind-proc", func(t testing.TB, b *Bundle) { b.Mount("/host-proc", "bind", "/proc/sys", "rbind", "ro") }},
		{"bind-over-proc", func(t testing.TB, b *Bundle) { b.Mount("/proc", "bind", b.Mkdir(t, "data"), "bind") }},
		{"bind-in-proc", func(t testing.TB, b *Bundle) { b.Mount("/proc/fs", "bind", b.Mkdir(t, "data"), "bind") }},
		{"bind-proc-uptime", func(t testing.TB, b *Bundle) {
			b.Mount("/proc/uptime", "bind", b.File(t, "uptime", "1 1\n"), "bind")
			b.Env("INSIDE_READ", "/proc/uptime")
		}},
		{"mount-over-root", func(t testing.TB, b *Bundle) { b.Mount("/", "tmpfs", "tmpfs") }},
		{"mount-through-link", func(t testing.TB, b *Bundle) {
			link(t, "/etc", b.Path("rootfs/link"))
			b.Mount("/link/below", "tmpfs", "tmpfs")
		}},
		{"mount-on-link", func(t testing.TB, b *Bundle) {
			link(t, "etc", b.Path("rootfs/link"))
			b.Mount("/link", "tmpfs", "tmpfs")
		}},
		{"mount-on-dangling-link", func(t testing.TB, b *Bundle) {
			b.Mkdir(t, "rootfs/var")
			link(t, "../run", b.Path("rootfs/var/run"))
			b.Mount("/var/run/below", "tmpfs", "tmpfs")
		}},
		{"mount-on-escaping-link", func(t testing.TB, b *Bundle) {
			link(t, "../../../../../../escape", b.Path("rootfs/link"))
			b.Mount("/link", "tmpfs", "tmpfs")
		}},
		{"mount-dots", func(t testing.TB, b *Bundle) { b.Mount("/home/../mnt/./x", "tmpfs", "tmpfs") }},
		{"mount-escaping-dots", func(t testing.TB, b *Bundle) { b.Mount("/../../mnt", "tmpfs", "tmpfs") }},
		{"mount-relative", func(t testing.TB, b *Bundle) { b.Mount("mnt", "tmpfs", "tmpfs") }},
		{"mount-trailing-slash", func(t testing.TB, b *Bundle) { b.Mount("/mnt/", "tmpfs", "tmpfs") }},
		{"mount-unknown-type", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "nosuchfs", "none") }},
		{"mount-empty-destination", func(t testing.TB, b *Bundle) { b.Mount("", "tmpfs", "tmpfs") }},
		{"mount-twice", func(t testing.TB, b *Bundle) {
			b.Mount("/mnt", "tmpfs", "first", "size=1m")
			b.Mount("/mnt", "tmpfs", "second", "size=2m")
		}},
		{"mount-many", func(t testing.TB, b *Bundle) {
			for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
				b.Mount("/mnt/"+n, "bind", b.Mkdir(t, "data/"+n), "bind", "ro")
			}
		}},
		{"mount-sysfs-rw", func(t testing.TB, b *Bundle) { b.Spec.Mounts[5].Options = []string{"nosuid", "noexec", "nodev"} }},
		{"mount-proc-hidepid", func(t testing.TB, b *Bundle) {
			b.Spec.Mounts[0].Options = append(b.Spec.Mounts[0].Options, "hidepid=2")
		}},
		{"mount-proc-subset", func(t testing.TB, b *Bundle) {
			b.Spec.Mounts[0].Options = append(b.Spec.Mounts[0].Options, "subset=pid")
			b.Spec.Linux.MaskedPaths, b.Spec.Linux.ReadonlyPaths = nil, nil
		}},
		{"mount-proc-elsewhere", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "proc", "proc") }},
		{"mount-sysfs-elsewhere", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "sysfs", "sysfs", "ro") }},
		{"mount-devpts-options", func(t testing.TB, b *Bundle) {
			b.Spec.Mounts[2].Options = []string{"nosuid", "noexec", "newinstance", "ptmxmode=0600", "mode=0600"}
		}},
		{"mount-dev-ro", func(t testing.TB, b *Bundle) {
			b.Spec.Mounts[1].Options = append(b.Spec.Mounts[1].Options, "ro")
		}},
		{"mount-dev-bind", func(t testing.TB, b *Bundle) {
			b.Spec.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind", "rprivate"}}
			b.Spec.Mounts = append(b.Spec.Mounts[:2], b.Spec.Mounts[5:]...)
		}},
		with("mount-no-dev", func(s *specs.Spec) { s.Mounts = append(s.Mounts[:1], s.Mounts[5:]...) }),
		with("mount-no-proc", func(s *specs.Spec) { s.Mounts = s.Mounts[1:]; s.Linux.MaskedPaths = nil; s.Linux.ReadonlyPaths = nil }),
		with("mount-none", func(s *specs.Spec) { s.Mounts = nil; s.Linux.MaskedPaths = nil; s.Linux.ReadonlyPaths = nil }),
		with("mount-no-devpts", func(s *specs.Spec) { s.Mounts = append(s.Mounts[:2:2], s.Mounts[3:]...) }),
		{"mount-cgroup", func(t testing.TB, b *Bundle) {
			b.Mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro")
		}},
		{"mount-cgroup-rw", func(t testing.TB, b *Bundle) {
			b.Mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev")
		}},
		{"mount-cgroup-namespace", func(t testing.TB, b *Bundle) {
			b.Namespace(specs.CgroupNamespace, "")
			b.Mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro")
		}},
		{"mount-overlay", func(t testing.TB, b *Bundle) {
			b.File(t, "lower/file", "x")
			b.Mkdir(t, "upper")
			b.Mkdir(t, "work")
			b.Mount("/mnt", "overlay", "overlay", "lowerdir="+b.Path("lower"), "upperdir="+b.Path("upper"), "workdir="+b.Path("work"))
			b.Env("INSIDE_TOUCH", "/mnt")
		}},
		{"mount-ramfs", func(t testing.TB, b *Bundle) { b.Mount("/mnt", "ramfs", "ramfs", "mode=0700") }},
		{"mount-idmap", func(t testing.TB, b *Bundle) {
			b.File(t, "data/file", "x")
			m := b.Mount("/mnt", "bind", b.Path("data"), "bind")
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 100}}
			m.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 6000, Size: 100}}
		}},
		{"mount-idmap-option", func(t testing.TB, b *Bundle) {
			b.File(t, "data/file", "x")
			m := b.Mount("/mnt", "bind", b.Path("data"), "rbind", "ridmap", "ro")
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 100}}
			m.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 6000, Size: 100}}
		}},
		{"mount-idmap-half", func(t testing.TB, b *Bundle) {
			m := b.Mount("/mnt", "bind", b.Mkdir(t, "data"), "bind")
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 100}}
		}},
		{"mount-idmap-tmpfs", func(t testing.TB, b *Bundle) {
			m := b.Mount("/mnt", "tmpfs", "tmpfs")
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 100}}
			m.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 6000, Size: 100}}
		}},
		{"mount-idmap-user-namespace", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.File(t, "data/file", "x")
			m := b.Mount("/mnt", "bind", b.Path("data"), "bind")
			m.UIDMappings, m.GIDMappings = b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings
		}},
		{"mount-idmap-user-namespace-option", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.File(t, "data/file", "x")
			b.Mount("/mnt", "bind", b.Path("data"), "bind", "idmap")
		}},
		with("masked-none", func(s *specs.Spec) { s.Linux.MaskedPaths = nil }),
		with("readonly-none", func(s *specs.Spec) { s.Linux.ReadonlyPaths = nil }),
		with("masked-file", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc/passwd") }),
		with("masked-directory", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc") }),
		with("masked-missing", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/no/such/path") }),
		with("masked-below-file", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc/passwd/x") }),
		with("masked-relative", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "etc") }),
		with("masked-twice", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc", "/etc") }),
		{"masked-link", func(t testing.TB, b *Bundle) {
			link(t, "/etc", b.Path("rootfs/link"))
			b.Spec.Linux.MaskedPaths = append(b.Spec.Linux.MaskedPaths, "/link")
		}},
		with("masked-device", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/dev/zero") }),
		with("readonly-file", func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/etc/passwd") }),
		with("readonly-directory", func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/etc", "/tmp") }),
		with("readonly-missing", func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/no/such/path") }),
		with("readonly-mount", func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/dev/shm") }),
		with("readonly-root", func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/") }),
		{"readonly-mount-flags", func(t testing.TB, b *Bundle) {
			b.Mount("/mnt", "tmpfs", "tmpfs", "nosuid", "noexec", "noatime")
			b.Spec.Linux.ReadonlyPaths = append(b.Spec.Linux.ReadonlyPaths, "/mnt")
		}},
		with("masked-and-readonly", func(s *specs.Spec) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc")
			s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/etc")
		}),
	}
	return cases
}
