package executor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// fifo makes a FIFO and returns its path and a descriptor that can only name it.
func fifo(t testing.TB) (string, *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return path, f
}

// gated creates a container that waits at a FIFO.
func gated(t testing.TB, s *specs.Spec, gate, stdout *os.File) *Process {
	t.Helper()
	p, err := shared.Create(contextT(t), Config{ID: "gated", Spec: s, Rootfs: layers(t, image(t)), Gate: gate, Stdout: stdout, Stderr: stdout})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFIFOGate(t *testing.T) {
	path, gate := fifo(t)
	s := spec("sh", "-c", "id -u; ls /proc/self/fd; grep SigQ /proc/self/status")
	s.Process.User.UID = 1000
	s.Linux.Seccomp = defaultSeccomp(t)
	r, w, _ := os.Pipe()
	defer r.Close()
	p := gated(t, s, gate, w)
	w.Close()
	if err := p.Start(contextT(t)); !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "OpenGate") {
		t.Errorf("Start says %v", err)
	}
	// Another process cannot wait there as well.
	if _, err := shared.Create(contextT(t), Config{ID: "second", Spec: spec("true"), Rootfs: layers(t, image(t)), Gate: gate}); !errors.Is(err, errs.InUse) {
		t.Errorf("a second process at the gate: %v", err)
	}
	// Somebody comes and goes, as a writer, as a reader that does not read, and as one
	// that gives up at once.
	for _, how := range []int{unix.O_WRONLY, unix.O_RDONLY, unix.O_RDWR} {
		fd, err := unix.Open(path, how|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	ctx, cancel := context.WithCancel(contextT(t))
	cancel()
	if err := OpenGate(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("opened by one who has given up: %v", err)
	}
	if err := OpenGate(contextT(t), path); err != nil {
		t.Fatal(err)
	}
	for _, then := range []string{"while it runs", "after its end"} {
		if err := OpenGate(contextT(t), path); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("opened again %s: %v", then, err)
		}
		if then == "while it runs" {
			out, _ := io.ReadAll(r)
			if f := strings.Fields(string(out)); !slices.Equal(f[:5], []string{"1000", "0", "1", "2", "3"}) || f[5] == "4" {
				t.Errorf("the program says %q", out)
			}
			if code, _ := wait(t, p); code != 0 {
				t.Errorf("it ended with %d", code)
			}
		}
	}
	// The FIFO can be used for the next one.
	p = gated(t, spec("sh", "-c", "exit 7"), gate, nil)
	if err := OpenGate(contextT(t), path); err != nil {
		t.Error(err)
	}
	if code, _ := wait(t, p); code != 7 {
		t.Errorf("it ended with %d", code)
	}
}

// TestOpeners: of many that open at the same time one does.
func TestOpeners(t *testing.T) {
	path, gate := fifo(t)
	for range 5 {
		p := gated(t, spec("true"), gate, nil)
		var opened atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := OpenGate(contextT(t), path); err == nil {
					opened.Add(1)
				} else if !errors.Is(err, errs.FailedPrecondition) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := opened.Load(); n != 1 {
			t.Errorf("%d opened the gate", n)
		}
		if code, _ := wait(t, p); code != 0 {
			t.Errorf("it ended with %d", code)
		}
	}
}

// TestOpenerDies: whoever takes what is in the pipe has opened it, also if it then dies.
func TestOpenerDies(t *testing.T) {
	path, gate := fifo(t)
	p := gated(t, spec("sh", "-c", "exit 3"), gate, nil)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, make([]byte, 1<<16)); n != os.Getpagesize() || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	unix.Close(fd)
	if err := OpenGate(contextT(t), path); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("opened again: %v", err)
	}
	if code, _ := wait(t, p); code != 3 {
		t.Errorf("it ended with %d", code)
	}
}

func TestFIFOGateFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *specs.Spec, root string)
		kind   *errs.Kind
		text   string
	}{
		"no interpreter": {func(s *specs.Spec, root string) {
			os.WriteFile(root+"/bin/script", []byte("#!/nowhere\n"), 0o755)
			s.Process.Args = []string{"script"}
		}, errs.NotFound, "interpreter"},
		"not a program": {func(s *specs.Spec, root string) {
			os.WriteFile(root+"/bin/text", []byte("hello"), 0o755)
			s.Process.Args = []string{"text"}
		}, errs.Invalid, "execute text"},
		// The filter forbids what the report needs least: it goes by write.
		"with seccomp": {func(s *specs.Spec, root string) {
			os.WriteFile(root+"/bin/text", []byte("hello"), 0o755)
			s.Process.Args = []string{"text"}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: rule(specs.ActAllow, -1, "execve", "write", "exit_group")}
		}, errs.Invalid, "execute text"},
		"execve forbidden": {func(s *specs.Spec, root string) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: rule(specs.ActErrno, int(unix.EPERM), "execve")}
		}, errs.PermissionDenied, "execute"},
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			eachWay(t, func(t *testing.T) {
				path, gate := fifo(t)
				lower := image(t)
				s := spec("true")
				tt.change(s, lower)
				p, err := shared.Create(contextT(t), Config{ID: "gated", Spec: s, Rootfs: layers(t, lower), Gate: gate})
				if err != nil {
					t.Fatal(err)
				}
				err = OpenGate(contextT(t), path)
				if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v (kind %v), want kind %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
				}
				said = append(said, strings.ReplaceAll(fmt.Sprint(err), path, "GATE"))
				if code, _ := wait(t, p); code != plan.NotExecuted {
					t.Errorf("it ended with %d", code)
				}
			})
			if said[0] != said[1] {
				t.Errorf("it says %q, and as orlop-init %q", said[0], said[1])
			}
		})
	}
	// A filter that ends the thread that executes, and not the process, whose other threads
	// nobody would end.
	for name, sc := range map[string]*specs.LinuxSeccomp{
		"thread killed by execve":   {DefaultAction: specs.ActAllow, Syscalls: rule(specs.ActKillThread, -1, "execve")},
		"thread killed by anything": {DefaultAction: specs.ActKill},
		"flag for all threads":      {DefaultAction: specs.ActKill, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}},
	} {
		for _, held := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, gate %v", name, held), func(t *testing.T) {
				s := spec("true")
				s.Linux.Seccomp = sc
				c := Config{ID: "killed", Spec: s, Rootfs: layers(t, image(t))}
				var path string
				if held {
					path, c.Gate = fifo(t)
				}
				p, err := shared.Create(contextT(t), c)
				if err != nil {
					t.Fatal(err)
				}
				if held {
					err = OpenGate(contextT(t), path)
				} else {
					err = p.Start(contextT(t))
				}
				if err != nil {
					t.Error(err)
				}
				code, signal := wait(t, p)
				if signal != int(unix.SIGSYS) {
					t.Errorf("it ended with %d, signal %d", code, signal)
				}
			})
		}
	}
	t.Run("killed", func(t *testing.T) {
		path, gate := fifo(t)
		p := gated(t, spec("true"), gate, nil)
		unix.Kill(p.PID(), unix.SIGKILL)
		wait(t, p)
		if err := OpenGate(contextT(t), path); !errors.Is(err, errs.FailedPrecondition) {
			t.Error(err)
		}
	})
	t.Run("no FIFO", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: spec("true"), Rootfs: layers(t, image(t)), Gate: f}); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
		if err := OpenGate(contextT(t), file); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
		if err := OpenGate(contextT(t), file+"x"); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
	})
	t.Run("not recorded", func(t *testing.T) {
		_, gate := fifo(t)
		before := leftovers()
		mine := errors.New("the disk is full")
		if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: spec("true"), Rootfs: layers(t, image(t)), Gate: gate,
			Created: func(p *Process) error { return fmt.Errorf("process %d: %w", p.PID(), mine) }}); !errors.Is(err, mine) {
			t.Error(err)
		}
		if after := leftovers(); after != before {
			t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
		}
	})
}

// job is what a process that creates a container and then ends is to do.
type job struct {
	Init, Gate string
	Spec       *specs.Spec
	Root       Rootfs
	Early      bool // it dies before Create returns
}

// creator does a job in a process of its own: it says the container's process id and is
// killed.
func creator(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		panic(err)
	}
	gate, err := os.OpenFile(j.Gate, unix.O_PATH, 0)
	if err != nil {
		panic(err)
	}
	die := func(p *Process) error {
		fmt.Println(p.PID())
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	c := Config{ID: "orphan", Spec: j.Spec, Rootfs: j.Root, Gate: gate}
	if j.Early {
		c.Created = die
	}
	e, err := New(Options{InitPath: j.Init})
	if err != nil {
		panic(err)
	}
	p, err := e.Create(context.Background(), c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	die(p)
	return 1
}

// TestCreatorDies: a container lives on without whoever created it, once Create has
// returned, and not before.
func TestCreatorDies(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprint("early ", early), func(t *testing.T) {
			path, _ := fifo(t)
			j, err := json.Marshal(job{Init: initPath, Gate: path, Spec: spec("sh", "-c", "exit 9"), Root: layers(t, image(t)), Early: early})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "ORLOP_EXECUTOR_JOB="+string(j))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			cmd.Wait()
			var pid int
			if _, e := fmt.Sscan(line, &pid); e != nil {
				t.Fatalf("the creator said %q, %v", line, err)
			}
			want := 9
			if early {
				want = plan.NotExecuted
			} else if err := OpenGate(contextT(t), path); err != nil {
				t.Error(err)
			}
			var ws unix.WaitStatus
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != want {
				t.Errorf("it ended with %v, %v; want %d", ws, err, want)
			}
			if early {
				if err := OpenGate(contextT(t), path); !errors.Is(err, errs.FailedPrecondition) {
					t.Error(err)
				}
			}
		})
	}
}

// TestExtraFiles: descriptors of the program's own follow the standard streams, and
// nothing else does.
func TestExtraFiles(t *testing.T) { eachWay(t, testExtraFiles) }

func testExtraFiles(t *testing.T) {
	var files []*os.File
	for i := range 7 {
		p := filepath.Join(t.TempDir(), "f")
		os.WriteFile(p, fmt.Appendf(nil, "file %d\n", i), 0o644)
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	want := "0 1 2 3 4 5 6 7 8 9 10 " // the last is the directory that ls reads
	script := `echo $(ls /proc/self/fd | sort -n | head -n 11); for i in 3 4 5 6 7 8 9; do cat <&$i; done`
	check := func(how, out string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 8 || lines[0]+" " != want {
			t.Errorf("%s: %q", how, out)
			return
		}
		for i, l := range lines[1:] {
			if l != fmt.Sprint("file ", i) {
				t.Errorf("%s: descriptor %d: %q", how, i+3, l)
			}
		}
		for _, f := range files {
			f.Seek(0, io.SeekStart)
		}
	}
	s := spec("sh", "-c", script)
	s.Linux.Seccomp = defaultSeccomp(t)
	check("start", run(t, Config{Spec: s, Rootfs: layers(t, image(t)), ExtraFiles: files}).out)
	path, gate := fifo(t)
	r, w, _ := os.Pipe()
	defer r.Close()
	p, err := shared.Create(contextT(t), Config{ID: "gated", Spec: s, Rootfs: layers(t, image(t)), Gate: gate, Stdout: w, ExtraFiles: files})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := OpenGate(contextT(t), path); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	wait(t, p)
	check("gate", string(out))
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
	defer end()
	check("exec", execute(t, ExecConfig{PID: p.PID(), ExtraFiles: files, Process: &specs.Process{Args: []string{"sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}}}))
	if _, err := shared.Create(contextT(t), Config{ID: "nil", Spec: s, Rootfs: layers(t, image(t)), ExtraFiles: []*os.File{nil}}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// TestKeyring: the session keyring is the container's own, or the caller's where that is
// asked for.
func TestKeyring(t *testing.T) {
	for _, keep := range []bool{false, true} {
		r := probe(t, func(s *specs.Spec, c *Config) { c.NoNewKeyring = keep })
		if own := strings.HasSuffix(r.Keyring, ";orlop"); own == keep {
			t.Errorf("kept: %v; its keyring is %s", keep, r.Keyring)
		}
	}
}
