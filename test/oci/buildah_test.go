package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// buildah runs it with roots of its own. Networks are the host's business: RUN lines have none.
func buildah(verb string, args ...string) []string {
	root := work + "/buildah"
	line := []string{"buildah", "--root", root + "/root", "--runroot", root + "/run", "--storage-driver", "overlay", verb}
	switch verb {
	case "run":
		line = append(line, "--runtime", orlopOCI, "--isolation", "oci", "--network", "none")
	case "build":
		line = append(line, "--runtime", orlopOCI, "--isolation", "oci", "--network", "none", "--cgroup-parent", groups+"/buildah", "--pull=never", "--layers=false")
	case "from":
		line = append(line, "--cgroup-parent", groups+"/buildah")
	}
	return append(line, args...)
}

func built(t testing.TB, verb string, args ...string) string {
	t.Helper()
	r := command(t, "", buildah(verb, args...)...)
	if r.code != 0 {
		t.Fatalf("buildah %s %v: code %d: %s", verb, args, r.code, r.err)
	}
	return r.out
}

func TestBuildah(t *testing.T) {
	built(t, "pull", "--quiet", "docker-archive:"+archive)
	defer built(t, "rmi", "--all", "--force")
	name := strings.TrimSpace(built(t, "from", "--name", "work", image))
	defer built(t, "rm", "--all")

	volume := t.TempDir()
	os.Chmod(volume, 0o777)
	for _, tt := range []struct {
		name string
		args []string
		out  string
		code int
	}{
		{"output", []string{name, "echo", "hello"}, "hello\n", 0},
		{"code", []string{name, "--", "sh", "-c", "exit 7"}, "", 7},
		{"not found", []string{name, "none"}, "", 1},
		{"user", []string{"--user", "some", name, "--", "sh", "-c", "id -u; echo $HOME"}, "1000\n/home/some\n", 0},
		{"workdir", []string{"--workingdir", "/tmp", name, "pwd"}, "/tmp\n", 0},
		{"environment", []string{"--env", "A=b", name, "--", "sh", "-c", "echo $A"}, "b\n", 0},
		{"capabilities", []string{"--cap-drop", "all", name, "grep", "CapEff", "/proc/self/status"}, "CapEff:\t0000000000000000\n", 0},
		{"seccomp", []string{name, "grep", "Seccomp:", "/proc/self/status"}, "Seccomp:\t2\n", 0},
		{"volume", []string{"--volume", volume + ":/v", name, "--", "sh", "-c", "echo x >/v/f; cat /v/f"}, "x\n", 0},
		{"it stays", []string{name, "--", "sh", "-c", "echo kept >/kept"}, "", 0},
		{"for the next", []string{name, "cat", "/kept"}, "kept\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := command(t, "", buildah("run", tt.args...)...); r.out != tt.out || r.code != tt.code {
				t.Errorf("%+v, want %q and %d", r, tt.out, tt.code)
			}
		})
	}
	t.Run("standard input", func(t *testing.T) {
		if r := command(t, "from outside", buildah("run", name, "cat")...); r.out != "from outside" || r.code != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		out, code := terminal(t, "it\n", buildah("run", "--terminal", name, "--", "sh", "-c", "tty; read x; echo got $x; exit 3")...)
		if code != 3 || !strings.Contains(out, "/dev/pts/") && !strings.Contains(out, "/dev/console") || !strings.Contains(out, "got it") {
			t.Errorf("%q %d", out, code)
		}
	})
	t.Run("build", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "Containerfile")
		write := func(lines ...string) {
			if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		os.WriteFile(dir+"/note", []byte("of the context\n"), 0o644)
		write("FROM "+image, "ENV A=b", "COPY note /note", "RUN cat /note >/both && echo $A >>/both && busybox chmod 1777 /tmp",
			`RUN ["/bin/sh", "-c", "id -u >>/both"]`, "USER some", "WORKDIR /home/some", "RUN id -u >/tmp/by-some; pwd >>/tmp/by-some",
			"RUN --mount=type=tmpfs,target=/scratch touch /scratch/x", `CMD ["/bin/cat", "/both"]`)
		built(t, "build", "--quiet", "-t", "localhost/made", "-f", file, dir)
		made := strings.TrimSpace(built(t, "from", "--name", "made", "localhost/made"))
		if r := command(t, "", buildah("run", "--user", "root", made, "--", "cat", "/both", "/tmp/by-some")...); r.out != "of the context\nb\n0\n1000\n/home/some\n" {
			t.Errorf("%+v", r)
		}
		write("FROM "+image, "RUN exit 9")
		if r := command(t, "", buildah("build", "-f", file, dir)...); r.code == 0 || !strings.Contains(r.err, "9") {
			t.Errorf("a line that fails: %+v", r)
		}
	})
}
