package oci

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// podman runs it with roots of its own. The host's control groups may be a hybrid of both
// versions, so it makes directories itself, where this package can take them away again.
func podman(args ...string) []string {
	root := work + "/podman"
	switch {
	case args[0] == "run" && !slices.Contains(args, "--pod"):
		args = append([]string{"run", "--cgroup-parent", groups + "/podman"}, args[1:]...)
	case args[0] == "pod" && args[1] == "create":
		args = append([]string{"pod", "create", "--cgroup-parent", groups + "/podman"}, args[2:]...)
	}
	return append([]string{"podman", "--root", root + "/root", "--runroot", root + "/run", "--tmpdir", root + "/tmp", "--cgroup-manager", "cgroupfs",
		"--storage-driver", "overlay", "--events-backend", "none", "--runtime", orlopOCI}, args...)
}

// in runs podman, which must succeed.
func in(t testing.TB, args ...string) string {
	t.Helper()
	r := command(t, "", podman(args...)...)
	if r.code != 0 {
		t.Fatalf("podman %v: code %d: %s", args, r.code, r.err)
	}
	return r.out
}

func TestPodman(t *testing.T) {
	in(t, "load", "-q", "-i", archive)
	defer in(t, "rmi", "-af")
	defer in(t, "rm", "-af", "-t", "0")

	for _, tt := range []struct {
		name string
		args []string
		out  string
		code int
	}{
		{"output", []string{image, "echo", "hello"}, "hello\n", 0},
		{"code", []string{image, "sh", "-c", "exit 7"}, "", 7},
		{"signal", []string{image, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, "", 137},
		{"not found", []string{image, "/bin/none"}, "", 127},
		{"not to be executed", []string{image, "/etc/passwd"}, "", 126},
		{"user", []string{"--user", "some", image, "sh", "-c", "id -u; echo $HOME"}, "1000\n/home/some\n", 0},
		{"hostname", []string{"--hostname", "box", image, "hostname"}, "box\n", 0},
		{"workdir", []string{"--workdir", "/tmp", image, "pwd"}, "/tmp\n", 0},
		{"read-only", []string{"--read-only", image, "sh", "-c", "touch /x 2>/dev/null || echo refused"}, "refused\n", 0},
		{"pids", []string{"--pids-limit", "33", image, "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"}, "33\n", 0},
		{"memory", []string{"--memory", "32m", image, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"}, "33554432\n", 0},
		{"out of memory", []string{"--memory", "32m", image, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}, "", 137},
		{"capabilities", []string{"--cap-drop", "all", image, "grep", "CapEff", "/proc/self/status"}, "CapEff:\t0000000000000000\n", 0},
		{"privileged", []string{"--privileged", image, "sh", "-c", "test -e /dev/kmsg && echo there"}, "there\n", 0},
		{"tmpfs", []string{"--tmpfs", "/scratch:size=64k", image, "sh", "-c", "echo x >/scratch/y; cat /scratch/y"}, "x\n", 0},
		{"init of the host's PID namespace", []string{"--pid", "host", image, "sh", "-c", "test $$ != 1 && echo shared"}, "shared\n", 0},
		{"user namespace", []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", image, "sh", "-c", "id -u; read a b c </proc/self/uid_map; echo $a $b $c; stat -c %u /bin/busybox"},
			"0\n0 100000 65536\n0\n", 0},
		{"no seccomp", []string{"--security-opt", "seccomp=unconfined", image, "grep", "Seccomp:", "/proc/self/status"}, "Seccomp:\t0\n", 0},
		{"seccomp", []string{image, "grep", "Seccomp:", "/proc/self/status"}, "Seccomp:\t2\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := command(t, "", podman(append([]string{"run", "--rm", "--net", "none"}, tt.args...)...)...)
			if r.out != tt.out || r.code != tt.code {
				t.Errorf("%+v, want %q and %d", r, tt.out, tt.code)
			}
		})
	}

	t.Run("standard input", func(t *testing.T) {
		r := command(t, "from outside", podman("run", "--rm", "-i", "--net", "none", image, "cat")...)
		if r.out != "from outside" || r.code != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		out, code := terminal(t, "it\n", podman("run", "--rm", "-it", "--net", "none", image, "sh", "-c", "stty size; read x; echo got $x; exit 3")...)
		if code != 3 || !strings.Contains(out, "31 71") || !strings.Contains(out, "got it") {
			t.Errorf("%q %d", out, code)
		}
	})
	t.Run("volumes", func(t *testing.T) {
		dir := t.TempDir()
		os.WriteFile(dir+"/f", []byte("of the host\n"), 0o644)
		if out := in(t, "run", "--rm", "--net", "none", "-v", dir+":/v", image, "sh", "-c", "cat /v/f; echo back >/v/g"); out != "of the host\n" {
			t.Errorf("%q", out)
		}
		if data, _ := os.ReadFile(dir + "/g"); string(data) != "back\n" {
			t.Errorf("%q", data)
		}
		in(t, "volume", "create", "vol")
		defer in(t, "volume", "rm", "vol")
		in(t, "run", "--rm", "--net", "none", "-v", "vol:/v", image, "touch", "/v/kept")
		if out := in(t, "run", "--rm", "--net", "none", "-v", "vol:/v", image, "ls", "/v"); out != "kept\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("a container's life", func(t *testing.T) {
		in(t, "run", "-d", "--name", "life", "--net", "none", "--health-cmd", "test -e /tmp/ok", "--health-interval", "disable", image,
			"sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done")
		if out := in(t, "exec", "life", "sh", "-c", "echo in; hostname >/dev/null"); out != "in\n" {
			t.Errorf("%q", out)
		}
		if r := command(t, "", podman("exec", "life", "sh", "-c", "exit 9")...); r.code != 9 {
			t.Errorf("%+v", r)
		}
		if r := command(t, "", podman("exec", "life", "none")...); r.code != 127 {
			t.Errorf("%+v", r)
		}
		if out, code := terminal(t, "", podman("exec", "-it", "life", "sh", "-c", "tty; exit 4")...); code != 4 || !strings.Contains(out, "/dev/pts/") {
			t.Errorf("%q %d", out, code)
		}
		if r := command(t, "", podman("healthcheck", "run", "life")...); r.code == 0 {
			t.Error("healthy before it is")
		}
		in(t, "exec", "life", "touch", "/tmp/ok")
		in(t, "healthcheck", "run", "life")
		in(t, "exec", "-d", "life", "sleep", "500")
		if out := in(t, "top", "life", "args"); !strings.Contains(out, "sleep 500") {
			t.Errorf("%q", out)
		}
		in(t, "pause", "life")
		if out := in(t, "inspect", "-f", "{{.State.Status}}", "life"); out != "paused\n" {
			t.Errorf("%q", out)
		}
		in(t, "unpause", "life")
		in(t, "update", "--memory", "64m", "life")
		in(t, "stop", "-t", "10", "life")
		if out := in(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life"); out != "exited 5\n" {
			t.Errorf("%q", out)
		}
		in(t, "start", "life")
		in(t, "restart", "-t", "10", "life")
		if out := in(t, "ps", "--format", "{{.Names}}"); out != "life\n" {
			t.Errorf("%q", out)
		}
		in(t, "kill", "life")
		in(t, "wait", "life")
		in(t, "rm", "life")
	})
	t.Run("pod", func(t *testing.T) {
		in(t, "pod", "create", "--infra=false", "--name", "pod")
		in(t, "run", "-d", "--pod", "pod", "--name", "first", "--net", "none", image)
		in(t, "run", "-d", "--pod", "pod", "--net", "container:first", "--ipc", "container:first", "--pid", "container:first", "--name", "second", image)
		if out := in(t, "exec", "second", "sh", "-c", "ls -d /proc/[0-9]* | grep -c ."); strings.TrimSpace(out) < "2" {
			t.Errorf("%q", out)
		}
		in(t, "pod", "stop", "-t", "0", "pod")
		in(t, "pod", "rm", "-f", "pod")
	})
}
