package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// BenchmarkRun is `run /bin/true` to the end of the command, with orlop-oci and its peers
// in turns, so that they share what the machine does meanwhile: the default seccomp
// profile, a network namespace, limits of memory and processes. -bench Run -benchtime 50x
// crun 1.8 knows no newer specification.
func BenchmarkRun(b *testing.B) {
	r := newRig(b, "/bin/true")
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	limit, pids := int64(64<<20), int64(100)
	r.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	r.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	profile, err := moby.GetDefaultProfile(r.spec)
	if err != nil {
		b.Fatal(err)
	}
	r.spec.Linux.Seccomp, r.spec.Version = profile, "1.0.2"
	r.save()
	inTurns(b, func(binary, root string) *exec.Cmd { return bench(r, binary, root, "run", "bench") })
}

// BenchmarkExec is `exec /bin/true` in a container with the default seccomp profile.
func BenchmarkExec(b *testing.B) {
	r := newRig(b, "/bin/sleep", "1000")
	profile, err := moby.GetDefaultProfile(r.spec)
	if err != nil {
		b.Fatal(err)
	}
	r.spec.Linux.Seccomp, r.spec.Version = profile, "1.0.2"
	path := r.spec.Linux.CgroupsPath
	b.Cleanup(func() { // the parent of those of each
		for _, g := range groups(strings.TrimPrefix(path, "/")) {
			os.Remove(g)
		}
	})
	started := map[string]bool{}
	inTurns(b, func(binary, root string) *exec.Cmd {
		if !started[root] {
			started[root] = true
			r.spec.Linux.CgroupsPath = path + "/" + filepath.Base(root)
			r.save()
			if err := bench(r, binary, root, "run", "--detach", "bench").Run(); err != nil { // not into a pipe, which the container would hold
				b.Logf("%s: %v", binary, err)
			}
			b.Cleanup(func() { bench(r, binary, root, "delete", "--force", "bench").Run() })
		}
		return bench(r, binary, root, "exec", "bench", "/bin/true")
	})
	r.spec.Linux.CgroupsPath = path
}

// inTurns runs the commands that command makes for a runtime and a directory of state.
func inTurns(b *testing.B, command func(binary, root string) *exec.Cmd) {
	state, err := os.MkdirTemp("/dev/shm", "orlop-oci-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(state) })
	peers := []struct {
		name, path string
		wall, cpu  time.Duration
	}{{name: "orlop-oci", path: built + "/orlop-oci"}, {name: "runc"}, {name: "crun"}}
	for i := range peers {
		p := &peers[i]
		if p.path == "" {
			p.path, _ = exec.LookPath(p.name)
		}
		if p.path == "" {
			b.Logf("%s is not there to compare with", p.name)
		} else if out, err := command(p.path, state+"/"+p.name).CombinedOutput(); err != nil {
			b.Logf("%s cannot do it here: %v: %s", p.name, err, out)
			p.path = ""
		}
	}
	for b.Loop() {
		for i := range peers {
			p := &peers[i]
			if p.path == "" {
				continue
			}
			cmd := command(p.path, state+"/"+p.name)
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_CHILDREN, &before)
			t := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatal(p.name, err)
			}
			p.wall += time.Since(t)
			unix.Getrusage(unix.RUSAGE_CHILDREN, &after)
			p.cpu += time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		}
	}
	for _, p := range peers {
		if p.path == "" {
			continue
		}
		b.ReportMetric(p.wall.Seconds()*1e3/float64(b.N), p.name+"-ms/op")
		b.ReportMetric(p.cpu.Seconds()*1e3/float64(b.N), p.name+"-cpu-ms/op")
		if p.name != "orlop-oci" {
			b.ReportMetric(float64(peers[0].wall)/float64(p.wall), "of-"+p.name)
			b.ReportMetric(float64(peers[0].cpu)/float64(p.cpu), "cpu-of-"+p.name)
		}
	}
}

func bench(r *rig, binary, root string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"--root", root}, args...)...)
	cmd.Dir = r.bundle
	cmd.Env = append(os.Environ(), "ORLOP_INIT="+built+"/orlop-init")
	return cmd
}
