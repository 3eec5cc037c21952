package security

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// attacks are tried with everything on, and must not succeed, and without each set of
// guards, and must.
var attacks = []struct {
	name    string
	without [][]string
	run     func(r *oci) (reached string)
}{
	{"binaries of the runtime overwritten by a container that is joined (CVE-2019-5736)", [][]string{{"init.sealed"}}, func(r *oci) string {
		before := [2][]byte{}
		for i, f := range []string{r.binary, r.init} {
			before[i], _ = os.ReadFile(f)
		}
		r.file("rootfs/bin/sh", "#!/proc/self/exe\n")
		p := r.imprison("overwrite")
		defer p.end()
		for range tries(r, 30) {
			r.run("exec", "prison", "/bin/sh")
			for i, f := range []string{r.binary, r.init} {
				if after, _ := os.ReadFile(f); !bytes.Equal(before[i], after) {
					return f + " is overwritten"
				}
			}
		}
		return ""
	}},
	{"working directory through a descriptor (CVE-2024-21626)", [][]string{{"paths.in-root", "paths.cwd-checked"}}, func(r *oci) string {
		for fd := 3; fd < 12; fd++ {
			r.spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), r.dir)
			if out := r.attack("file", "secret"); out != "" {
				return out
			}
		}
		return ""
	}},
	{"working directory of who joins, through a descriptor", [][]string{{"paths.in-root", "paths.cwd-checked"}}, func(r *oci) string {
		p := r.imprison("wait")
		defer p.end()
		for fd := 3; fd < 12; fd++ {
			cwd := fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), r.dir)
			if out, _ := r.run("exec", "--cwd", cwd, "prison", "/bin/attacker", "file", "secret"); out != "" {
				return out
			}
		}
		return ""
	}},
	{"program through a descriptor", [][]string{{"init.lets-go"}}, func(r *oci) string {
		victim := exec.Command("/bin/sleep", "60")
		victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		if err := victim.Start(); err != nil {
			r.t.Fatal(err)
		}
		defer func() { victim.Process.Kill(); victim.Wait() }()
		r.copy("attacker", "attacker")
		r.spec.Process.User = specs.User{UID: 1000, GID: 1000}
		for fd := 3; fd < 12; fd++ {
			r.spec.Process.Args = []string{fmt.Sprintf("/proc/self/fd/%d/%d/root%s/attacker", fd, victim.Process.Pid, r.dir), "say", "ran a binary of the host"}
			if out := r.attack(); out != "" {
				return out
			}
		}
		return ""
	}},
	{"descriptors of the caller, and of the runtime", [][]string{{"init.close-on-exec"}}, func(r *oci) string {
		r.extra = directories(r.t, 20)
		return r.attack("descriptors")
	}},
	{"descriptors beside the one that is passed on", [][]string{{"init.close-on-exec", "init.lets-go"}}, func(r *oci) string {
		r.extra = directories(r.t, 20)
		r.spec.Process.Args = []string{"/bin/attacker", "descriptors"}
		out, _ := r.run("run", "--preserve-fds", "1", "attack")
		if !strings.Contains(out, "descriptor 3 is /") {
			r.t.Errorf("what was to be passed on is not there: %q", out)
		}
		_, more, _ := strings.Cut(out, "\n")
		return strings.TrimSpace(more)
	}},
	// Without init.close-on-exec there is nobody to join: no start would end.
	{"descriptors of who joins", nil, func(r *oci) string {
		p := r.imprison("wait")
		defer p.end()
		r.extra = directories(r.t, 20)
		out, _ := r.run("exec", "prison", "/bin/attacker", "descriptors")
		return out
	}},
	{"proc renamed in a root filesystem that others have (CVE-2019-19921)", [][]string{{"mounts.masks-by-mount"}}, func(r *oci) string {
		os.Mkdir(r.root("decoy"), 0o755)
		done := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for n := 0; ; n++ {
				unix.Renameat2(unix.AT_FDCWD, r.root("proc"), unix.AT_FDCWD, r.root("decoy"), unix.RENAME_EXCHANGE)
				select {
				case <-done:
					return
				default:
				}
			}
		}()
		defer func() { close(done); <-ended }()
		for range tries(r, 30) {
			if out := r.attack("masks", "/proc", "/decoy"); out != "" {
				return out
			}
		}
		return ""
	}},
	{"environment of the caller in a hook", [][]string{{"hooks.environment"}}, func(r *oci) string {
		said := r.dir + "/said"
		hook := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "env >>" + said}}
		r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}, CreateContainer: []specs.Hook{hook}, Poststart: []specs.Hook{hook}, Poststop: []specs.Hook{hook}}
		r.attack("say")
		out, err := os.ReadFile(said)
		if err != nil {
			r.t.Errorf("the hooks did not run: %v", err)
		}
		if strings.Contains(string(out), "SECRET") {
			return string(out)
		}
		return ""
	}},
	{"sysctl whose name leads to one of the host's (CVE-2022-0811)", [][]string{{"proc.sysctl-names"}}, func(r *oci) string {
		value, _ := os.ReadFile("/proc/sys/fs/lease-break-time") // to write it again changes nothing
		r.spec.Linux.Sysctl = map[string]string{"net/../fs/lease-break-time": strings.TrimSpace(string(value))}
		return r.attack("say", "a sysctl of the host is written")
	}},
	{"devices made where a link leads (CVE-2026-41579)", [][]string{{"paths.in-root"}}, func(r *oci) string {
		os.Remove(r.root("dev"))
		os.Mkdir(r.dir+"/outside", 0o755)
		os.Symlink(r.dir+"/outside", r.root("dev"))
		r.spec.Mounts = r.spec.Mounts[:1]
		r.attack("say")
		list, _ := os.ReadDir(r.dir + "/outside")
		for _, e := range list {
			return "made on the host: " + e.Name()
		}
		return ""
	}},
	{"inheritable capabilities of one that is added (CVE-2022-29162)", nil, func(r *oci) string {
		p := r.imprison("wait")
		defer p.end()
		out, _ := r.run("exec", "--cap", "CAP_NET_ADMIN", "prison", "/bin/attacker", "status", "CapInh", "0000000000000000")
		return out
	}},
	{"name of a container that is a path", nil, func(r *oci) string {
		for _, id := range []string{"../outside", "..", ".", "a/b", "/tmp/x", "a\x00b"[:1] + "\n", ""} {
			for _, command := range []string{"run", "create", "delete", "state", "kill"} {
				if out, msg := r.run(command, id); msg == "" {
					return fmt.Sprintf("%s %q is taken and says %q", command, id, out)
				}
			}
		}
		if _, err := os.Stat(r.dir + "/outside"); err == nil {
			return "a directory is made outside"
		}
		return ""
	}},
	{"password file of an image that never ends, or is the host's", nil, func(r *oci) string {
		passwd := r.root("etc/passwd")
		for name, make := range map[string]func(){
			"fifo":    func() { fifo(r.t, passwd) },
			"zero":    func() { os.Symlink("/dev/zero", passwd) },
			"host's":  func() { os.Symlink("../../../../../.."+r.file("passwd", "x:x:0:0::/of/the/host:/bin/sh\n"), passwd) },
			"process": func() { os.Symlink(fmt.Sprintf("/proc/%d/root%s/passwd", os.Getpid(), r.dir), passwd) },
			"large":   func() { r.file("rootfs/etc/passwd", strings.Repeat("x", 8<<20)) },
		} {
			os.Remove(passwd)
			make()
			r.spec.Process.Env = []string{"PATH=/bin"}
			if out := r.attack("environment", "HOME"); out != "HOME=/" {
				return name + ": " + out
			}
		}
		return ""
	}},
	{"state that others may read", nil, func(r *oci) string {
		p := r.imprison("wait")
		defer p.end()
		var open []string
		filepath.Walk(r.dir+"/state", func(path string, st os.FileInfo, err error) error {
			if err == nil && path != r.dir+"/state" && st.Mode().Perm()&0o077 != 0 {
				open = append(open, fmt.Sprintf("%s has mode %o", path, st.Mode().Perm()))
			}
			return nil
		})
		return strings.Join(open, "\n")
	}},
}

func TestAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			if reached := a.run(newOCI(t, nil)); reached != "" {
				t.Fatalf("it succeeds: %s", reached)
			}
			for _, without := range a.without {
				t.Run("without "+strings.Join(without, " and "), func(t *testing.T) {
					if reached := a.run(newOCI(t, without)); reached == "" {
						t.Error("it does not succeed: it is no attack, or something else stops it")
					} else {
						t.Logf("%.200s", reached)
					}
				})
			}
		})
	}
}

// tries is how often an attack that needs luck is tried.
func tries(r *oci, n int) int {
	if len(r.without) > 0 {
		return 20 * n // until it succeeds
	}
	return n
}

// directories are what a careless caller has open.
func directories(t *testing.T, n int) (list []*os.File) {
	t.Helper()
	for range n {
		f, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		list = append(list, f)
	}
	return list
}
