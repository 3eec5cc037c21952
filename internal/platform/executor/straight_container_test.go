package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestStraightContainer: which containers begin as a program, and which as orlop-init, because
// their plan says so or because something is not as usual. What they see is the same.
func TestStraightContainer(t *testing.T) {
	type change func(s *specs.Spec, c *Config)
	mounts := func(list ...specs.Mount) change {
		return func(s *specs.Spec, c *Config) { s.Mounts = append(s.Mounts, list...) }
	}
	bind := func(source, destination string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: append(options, "bind")}
	}
	tmpfs := func(destination string, options ...string) specs.Mount {
		return specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: destination, Options: options}
	}
	own := regexp.MustCompile(temporary + `/[^/ ]+/\d+`)
	many := func(n int) (list []specs.Mount) {
		for i := range n {
			list = append(list, bind("/etc/hostname", fmt.Sprintf("/many/%d", i)))
		}
		return list
	}
	dir, file := t.TempDir(), t.TempDir()+"/file"
	write(t, dir+"/in", "a file of a volume")
	write(t, file, "a file")
	for name, tt := range map[string]struct {
		root     func(dir string) // changes the image
		change   change
		straight bool
		again    bool // it begins straight, and is done over
		out      string
	}{
		"plain": {nil, nil, true, false, "box"},
		"everything of a pod": {nil, func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, bind(file, "/etc/hosts", "ro"), bind(dir, "/var/run/secrets/of", "rbind", "ro", "nosuid"), bind(dir, "/data", "rprivate"), bind(dir, "/shared", "rshared"))
			s.Process.OOMScoreAdj, s.Process.User = ptr(900), specs.User{UID: 42, GID: 43, AdditionalGids: []uint32{44}}
			s.Process.Env = []string{"PATH=/sbin:/bin"}
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000"}
			s.Linux.Seccomp, s.Domainname = defaultSeccomp(t), "domain"
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, UID: ptr(uint32(5)), GID: ptr(uint32(6)), FileMode: ptr(os.FileMode(0o640))}, {Path: "/dev/deep/fifo", Type: "p"}}
		}, true, false, "a file of a volume"},
		"read-only root":                {nil, func(s *specs.Spec, c *Config) { s.Root = &specs.Root{Readonly: true}; s.Process.Cwd = "/made/here" }, true, false, "/made/here"},
		"a directory as root":           {nil, func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{Dir: c.Rootfs.Lower[0]} }, true, false, "box"},
		"one layer":                     {nil, func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{Lower: c.Rootfs.Lower} }, true, false, "box"},
		"mount points that are missing": {nil, mounts(bind(dir, "/a"), bind(dir, "/b/c"), bind(dir, "/d/e/f"), bind(file, "/g"), bind(file, "/h/i"), bind(file, "/j/k/l"), tmpfs("/m/n/o/p", "mode=700")), true, false, "box"},
		"mount points over links": {func(dir string) {
			for path, to := range map[string]string{"/var": "usr/var", "/dangling": "/run/far", "/links": "../../links", "/hosts": "/etc/hosts"} {
				os.Symlink(to, dir+path)
			}
			os.MkdirAll(dir+"/usr/var", 0o755)
			os.MkdirAll(dir+"/links", 0o755)
			write(t, dir+"/etc/hosts", "")
		}, mounts(bind(dir, "/var"), bind(file, "/hosts")), true, false, "box"},
		"mount point over a link to nothing": {func(dir string) { os.Symlink("/run/far", dir+"/dangling") }, mounts(bind(dir, "/dangling/deep")), true, true, "box"},
		"volume on /dev":                     {nil, func(s *specs.Spec, c *Config) { ownDev(s, deviceVolume(t)) }, true, false, "box"},
		"own files in /proc":                 {nil, mounts(bind(file, "/proc/meminfo")), true, false, "box"},
		"no /proc":                           {nil, func(s *specs.Spec, c *Config) { s.Mounts = s.Mounts[1:] }, true, false, "box"},
		"masked files of the image": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc/none")
		}, true, false, "box"},
		"masked files of the image that are there": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/root")
		}, true, true, "box"},
		"links that are there":       {func(dir string) { os.Symlink("elsewhere", dir+"/dev/fd") }, func(s *specs.Spec, c *Config) { s.Mounts = slices.Delete(s.Mounts, 1, 5) }, true, false, "box"},
		"devices that are there":     {func(dir string) { unix.Mknod(dir+"/dev/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, func(s *specs.Spec, c *Config) { s.Mounts = slices.Delete(s.Mounts, 1, 5) }, true, true, "box"},
		"a tmpfs without a mode":     {nil, mounts(tmpfs("/tmp")), false, false, "box"},
		"a tmpfs with what is there": {nil, mounts(tmpfs("/etc", "tmpcopyup", "mode=755")), false, false, "box"},
		"limits above what is allowed": {nil, func(s *specs.Spec, c *Config) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY}}
			s.Process.OOMScoreAdj = ptr(-1000)
		}, true, false, "box"},
		"many mounts":                  {nil, mounts(many(100)...), true, false, "box"},
		"more mounts than are told of": {nil, mounts(many(200)...), false, false, "box"},
		"hooks": {nil, func(s *specs.Spec, c *Config) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		}, false, false, "box"},
		"user namespace": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
			c.Rootfs.IDMap = true
		}, true, false, "box"},
		"new time namespace": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 100000}}
		}, true, false, "box"},
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			var warned [2][]string
			for i, way := range []bool{true, false} {
				root := image(t)
				write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nsome:x:42:43::/home/some:/bin/sh\n")
				if tt.root != nil {
					tt.root(root)
				}
				s := spec("sh", "-c", `hostname; pwd; id; echo $HOME; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax /data/in /proc/self/oom_score_adj
					sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ //; s/(master|shared):[0-9]+/\1/g; s/(upper|work)dir=[^, ]*//g; s/lowerdir[^ ,]*//g; s/uuid=on,//' /proc/self/mountinfo | sort
					grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|Cap|NoNew|Seccomp|Cpus)' /proc/self/status; cat /proc/self/limits; env | sort; ls -l /proc/self/fd /dev 2>/dev/null | sed -E 's/[A-Z][a-z][a-z] +[0-9]+ +[0-9:]+ //; s/pipe:.*//; s/[0-9]+ -> .proc.*//'; ls -ld /var /data /shared /a /b /b/c /d /d/e /d/e/f /g /h /h/i /j/k/l /m/n/o/p /m/n /etc /tmp /dangling 2>/dev/null | sed -E 's/[A-Z][a-z][a-z] +[0-9]+ +[0-9:]+ //'; ip -o link show lo | cut -c1-40; cat /proc/sys/net/ipv4/ip_unprivileged_port_start`)
				// Go's runtime raises it where nobody says what it is to be.
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 200, Hard: 300}}
				c := Config{ID: "straight", Spec: s, Rootfs: layers(t, root)}
				if tt.change != nil {
					tt.change(s, &c)
				}
				out := hear(t, way, func(w *os.File) (*Process, error) {
					c.Stdout, c.Stderr = w, w
					return shared.Create(contextT(t), c)
				}, func(p *Process, again bool) {
					if got := p.straight != nil; got != (tt.straight && !tt.again && way) || again != (tt.again && way) {
						t.Errorf("it begins as a program: %v, and is done over: %v", got, again)
					}
					warned[i] = slices.Sorted(slices.Values(p.Warnings()))
				})
				if !strings.Contains(out, tt.out) {
					t.Errorf("it says %s", out)
				}
				said = append(said, own.ReplaceAllString(out, "DIR"))
			}
			differ(t, said[0], said[1])
			if !slices.Equal(warned[0], warned[1]) {
				t.Errorf("it warns of %v, and as orlop-init of %v", warned[0], warned[1])
			}
		})
	}
}

// TestStraightGivenUp: whoever gives up at any moment leaves nothing, of an exec, a container, and
// one in a user namespace, where another process is thrown away on the way.
func TestStraightGivenUp(t *testing.T) {
	root := image(t)
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, root)})
	defer end()
	container := func(change func(s *specs.Spec, c *Config)) func(ctx context.Context, i int) (*Process, error) {
		c := Config{ID: "given-up", Rootfs: layers(t, root), Spec: spec("sh", "-c", "exit 0")}
		change(c.Spec, &c)
		return func(ctx context.Context, i int) (*Process, error) {
			c.Spec.Process.Terminal = i%2 == 0
			return shared.Create(ctx, c)
		}
	}
	for name, begin := range map[string]func(ctx context.Context, i int) (*Process, error){
		"exec": func(ctx context.Context, i int) (*Process, error) {
			return shared.Exec(ctx, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Process: &specs.Process{
				Args: []string{"sh", "-c", "exit 0"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: i%2 == 0, OOMScoreAdj: ptr(900)}})
		},
		"container":                     container(func(s *specs.Spec, c *Config) {}),
		"container in a user namespace": container(mapped),
	} {
		t.Run(name, func(t *testing.T) { givenUp(t, begin) })
	}
}

func givenUp(t *testing.T, begin func(ctx context.Context, i int) (*Process, error)) {
	fds := func() int {
		list, _ := os.ReadDir("/proc/self/fd")
		return len(list)
	}
	before, open := leftovers(), 0
	given, straight := 0, 0
	for i := range 150 {
		ctx, cancel := context.WithTimeout(contextT(t), time.Duration(i)*50*time.Microsecond)
		if i == 149 {
			ctx = contextT(t)
		}
		q, err := begin(ctx, i)
		if err == nil {
			if q.straight != nil {
				straight++
			}
			if err = q.Start(ctx); err == nil {
				wait(t, q)
			}
			q.Close()
			if q.Console() != nil {
				q.Console().Close()
			}
		}
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			given++
		} else if err != nil {
			t.Fatal(err)
		}
		if n := fds(); i == 0 {
			open = n
		} else if n > open {
			list, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())).CombinedOutput()
			t.Fatalf("after %d tries %d descriptors are open, %d were: %v\n%s", i, n, open, err, list)
		}
	}
	if given == 0 || straight == 0 {
		t.Errorf("%d gave up, %d began as a program", given, straight)
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}
