package security

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/programs"
)

// binaries is where the programs are. Those whose names end in -guards have guards that
// can be off (package guard).
var binaries string

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: they make containers")
		os.Exit(1)
	}
	var list []programs.Program
	for _, p := range []string{"orlop-oci", "orlop-init"} {
		list = append(list, programs.Program{Package: "cmd/" + p}, programs.Program{Package: "cmd/" + p, Name: p + "-guards", Tags: "guards"})
	}
	list = append(list, programs.Program{Package: "internal/platform/executor/testdata/attacker"})
	dir, remove, err := programs.Build(list...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaries = dir
	code := m.Run()
	remove()
	os.Exit(code)
}

// oci is the runtime for one attack: its bundle, its state, and which guards are off.
type oci struct {
	t       *testing.T
	without []string
	dir     string // bundle, state and the rest
	binary  string // a copy of orlop-oci that may be overwritten
	init    string // of orlop-init
	spec    *specs.Spec
	extra   []*os.File // descriptors 3 and on of the runtime
}

var containers int

func newOCI(t *testing.T, without []string) *oci {
	t.Helper()
	r := &oci{t: t, without: without}
	var err error
	if r.dir, err = os.MkdirTemp("", "orlop-security-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		list, _ := os.ReadDir(r.dir + "/state")
		for _, e := range list {
			r.run("delete", "--force", e.Name())
		}
		if left, _ := os.ReadDir(r.dir + "/state"); len(left) > 0 {
			t.Errorf("containers are left: %v", left)
		}
		os.RemoveAll(r.dir)
	})
	if err := os.Chmod(r.dir, 0o755); err != nil { // users of containers look for what is in it
		t.Fatal(err)
	}
	suffix := ""
	if len(without) > 0 {
		suffix = "-guards"
	}
	r.binary, r.init = r.copy("orlop-oci"+suffix, "orlop-oci"), r.copy("orlop-init"+suffix, "orlop-init")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc", "bin"} {
		if err := os.MkdirAll(r.root(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.copy("attacker", "rootfs/bin/attacker")
	r.file("secret", "the host's secret")
	containers++
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_KILL", "CAP_SYS_CHROOT"}
	r.spec = &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: fmt.Sprintf("/orlop-security-%d-%d", os.Getpid(), containers),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}},
			MaskedPaths: []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
	return r
}

func (r *oci) root(path string) string { return filepath.Join(r.dir, "rootfs", path) }

func (r *oci) copy(program, to string) string {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(binaries, program))
	if err != nil {
		r.t.Fatal(err)
	}
	return r.file(to, string(data))
}

// file makes an executable file below the directory.
func (r *oci) file(name, content string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	os.Remove(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(content), 0o755)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return path
}

// command is one command of the runtime, in its bundle.
func (r *oci) command(ctx context.Context, args ...string) *exec.Cmd {
	r.t.Helper()
	data, err := json.Marshal(r.spec)
	if err == nil {
		err = os.WriteFile(r.dir+"/config.json", data, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, r.binary, append([]string{"--root", r.dir + "/state"}, args...)...)
	cmd.Dir, cmd.ExtraFiles = r.dir, r.extra
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ORLOP_INIT=" + r.init, "CALLERS_SECRET=the caller's secret"}
	if len(r.without) > 0 {
		cmd.Env = append(cmd.Env, "ORLOP_WITHOUT="+strings.Join(r.without, ","))
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a command to its end and returns what it wrote. That it fails is an answer
// too; that it does not end is none.
func (r *oci) run(args ...string) (stdout, stderr string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := r.command(ctx, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Run()
	if ctx.Err() != nil {
		r.t.Errorf("orlop-oci %s does not end", strings.Join(args, " "))
	}
	return out.String(), err.String()
}

// attack runs the attacker as a container of its own and returns what it reached.
func (r *oci) attack(args ...string) string {
	r.t.Helper()
	if args != nil {
		r.spec.Process.Args = append([]string{"/bin/attacker"}, args...)
	}
	out, _ := r.run("run", "attack")
	r.run("delete", "--force", "attack")
	return strings.TrimSpace(out)
}

// prison is a container that another joins: it was created by one command and started by
// another, and its attacker has said that it is ready. Where guards are off it is made by
// one: who waits for a gate knows it by what they guard.
type prison struct {
	r       *oci
	in, out *os.File
}

func (r *oci) imprison(args ...string) *prison {
	r.t.Helper()
	r.spec.Process.Args = append([]string{"/bin/attacker"}, args...)
	inR, in, _ := os.Pipe()
	out, outW, _ := os.Pipe()
	how := []string{"create", "prison"}
	if len(r.without) > 0 {
		how = []string{"run", "--detach", "prison"}
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	cmd := r.command(ctx, how...)
	cmd.Stdin, cmd.Stdout = inR, outW
	err := cmd.Run()
	inR.Close()
	outW.Close()
	if err != nil {
		r.t.Fatalf("%v: %v", how, err)
	}
	if len(r.without) == 0 {
		if _, msg := r.run("start", "prison"); msg != "" {
			r.t.Fatalf("start: %s", msg)
		}
	}
	out.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		r.t.Fatalf("the attacker is not ready: %v", err)
	}
	return &prison{r, in, out}
}

// end ends it and returns what it reached.
func (p *prison) end() string {
	p.in.Close()
	out, _ := io.ReadAll(p.out)
	p.out.Close()
	p.r.run("delete", "--force", "prison")
	return strings.TrimSpace(string(out))
}

func fifo(t *testing.T, path string) {
	t.Helper()
	os.Remove(path)
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}
