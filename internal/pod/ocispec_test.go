package pod

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func ref[T any](v T) *T { return &v }

// input is that of a container that runs "serve" of an ordinary image.
func input(t *testing.T) specInput {
	t.Helper()
	pod := &Spec{Key: Key{"ns", "web"}, Containers: []Container{{Name: "main", Image: "example.org/app:1"}}}
	return specInput{
		Pod: pod, Container: &pod.Containers[0], Image: ocispec.ImageConfig{Entrypoint: []string{"serve"}, Cmd: []string{"--all"}},
		Layers: []string{layer(t, "etc/passwd", passwd, "etc/group", group)},
		Net:    "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts", MaxPIDs: 100,
		Expand: func(s string) string { return expand(s, map[string]string{"A": "a"}) },
	}
}

// build builds the specification of an input that change has changed.
func build(t *testing.T, change func(in *specInput)) *specs.Spec {
	t.Helper()
	in := input(t)
	change(&in)
	s, err := buildSpec(in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSpecDefaults(t *testing.T) {
	s := build(t, func(in *specInput) {})
	p := s.Process
	if !slices.Equal(p.Args, []string{"serve", "--all"}) || p.Cwd != "/" || p.Terminal || p.NoNewPrivileges || *p.OOMScoreAdj != 1000 {
		t.Errorf("%+v", p)
	}
	if !slices.Equal(p.Env, []string{defaultPath, "HOSTNAME=web", "HOME=/root"}) {
		t.Errorf("environment: %q", p.Env)
	}
	for name, set := range map[string][]string{"bounding": p.Capabilities.Bounding, "effective": p.Capabilities.Effective, "permitted": p.Capabilities.Permitted} {
		if !slices.Equal(set, defaultCapabilities) || len(set) != 14 {
			t.Errorf("%s: %v", name, set)
		}
	}
	if len(p.Capabilities.Inheritable)+len(p.Capabilities.Ambient) != 0 {
		t.Errorf("%+v", p.Capabilities)
	}
	if s.Hostname != "" || s.Root.Readonly || s.Linux.RootfsPropagation != "rprivate" || s.Linux.Seccomp == nil {
		t.Errorf("%+v, %+v", s, s.Linux)
	}
	if !slices.Contains(s.Linux.MaskedPaths, "/proc/kcore") || !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") {
		t.Errorf("%v, %v", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
	}
	if r := s.Linux.Resources; *r.CPU.Shares != 2 || r.CPU.Quota != nil || r.Memory != nil || *r.Pids.Limit != 100 || r.HugepageLimits != nil {
		t.Errorf("%+v", r)
	}
}

func TestSpecArguments(t *testing.T) {
	for _, tt := range []struct {
		entry, cmd, command, args, want string
	}{
		{"e", "c", "", "", "e c"}, {"e", "", "", "", "e"}, {"", "c", "", "", "c"},
		{"e", "c", "x", "", "x"}, {"e", "c", "", "y", "e y"}, {"e", "c", "x", "y", "x y"},
		{"e", "c", "$(A)", "$(B) $$(A)", "a $(B) $(A)"},
		{"$(A)", "$(A)", "", "", "$(A) $(A)"}, // the image's are not expanded
		{"", "", "", "y", "y"},
	} {
		s := build(t, func(in *specInput) {
			in.Image.Entrypoint, in.Image.Cmd = strings.Fields(tt.entry), strings.Fields(tt.cmd)
			in.Container.Command, in.Container.Args = strings.Fields(tt.command), strings.Fields(tt.args)
		})
		if got := strings.Join(s.Process.Args, " "); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	in := input(t)
	in.Image = ocispec.ImageConfig{}
	if _, err := buildSpec(in); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "example.org/app:1") {
		t.Errorf("nothing to run: %v", err)
	}
	// The image's lists are shared by every container of it.
	in = input(t)
	in.Image.Entrypoint = append(make([]string, 0, 8), "serve")
	in.Container.Args = []string{"x"}
	if _, err := buildSpec(in); err != nil || in.Image.Entrypoint[:2][1] != "" {
		t.Errorf("the image's entrypoint was written to: %q, %v", in.Image.Entrypoint[:2], err)
	}
}

func TestSpecProcess(t *testing.T) {
	s := build(t, func(in *specInput) {
		in.Container.TTY = true
		in.Env = []string{"PATH=/x", "HOME=/h", "X=1"}
		in.Image.WorkingDir = "srv"
		in.Container.Security = ContainerSecurity{AllowPrivilegeEscalation: ref(false), ReadOnlyRoot: true, ProcMount: "Unmasked"}
	})
	if !s.Process.Terminal || !slices.Equal(s.Process.Env, []string{"HOSTNAME=web", "TERM=xterm", "PATH=/x", "HOME=/h", "X=1"}) || s.Process.Cwd != "/srv" {
		t.Errorf("%+v", s.Process)
	}
	if !s.Process.NoNewPrivileges || !s.Root.Readonly || s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil {
		t.Errorf("%+v, %+v, %+v", s.Process, s.Root, s.Linux)
	}
	s = build(t, func(in *specInput) {
		in.Image.WorkingDir, in.Container.WorkingDir = "/srv", "/mine"
		in.Pod.HostNetwork, in.Env = true, []string{"TERM=dumb"}
		in.Container.TTY = true
	})
	host, _ := os.Hostname()
	if s.Process.Cwd != "/mine" || !slices.Contains(s.Process.Env, "HOSTNAME="+host) || slices.Contains(s.Process.Env, "TERM=xterm") {
		t.Errorf("%+v", s.Process)
	}
}

func TestSpecUser(t *testing.T) {
	for name, tt := range map[string]struct {
		image string
		pod   PodSecurity
		own   ContainerSecurity
		uid   uint32
		gid   uint32
		more  []uint32
		err   string
	}{
		"root":                    {more: []uint32{0, 50}},
		"image":                   {image: "app", uid: 1000, gid: 1001, more: []uint32{50, 60, 1001}},
		"pod":                     {image: "app", pod: PodSecurity{RunAsUser: ref[int64](5)}, uid: 5, more: []uint32{0}},
		"container over pod":      {pod: PodSecurity{RunAsUser: ref[int64](5), RunAsGroup: ref[int64](6)}, own: ContainerSecurity{RunAsUser: ref[int64](7), RunAsGroup: ref[int64](8)}, uid: 7, gid: 8, more: []uint32{8}},
		"groups of a number":      {own: ContainerSecurity{RunAsUser: ref[int64](1000), RunAsGroup: ref[int64](9)}, uid: 1000, gid: 9, more: []uint32{9, 50, 60}},
		"merge":                   {image: "app", pod: PodSecurity{Groups: []int64{70, 60}, FSGroup: ref[int64](80), GroupsPolicy: "Merge"}, uid: 1000, gid: 1001, more: []uint32{50, 60, 70, 80, 1001}},
		"strict":                  {image: "app", pod: PodSecurity{Groups: []int64{70}, FSGroup: ref[int64](80), GroupsPolicy: "Strict"}, uid: 1000, gid: 1001, more: []uint32{70, 80, 1001}},
		"a number is not a name":  {own: ContainerSecurity{RunAsUser: ref[int64](1002)}, uid: 1002, more: []uint32{0}},
		"not root":                {image: "app", pod: PodSecurity{RunAsNonRoot: ref(true)}, uid: 1000, gid: 1001, more: []uint32{50, 60, 1001}},
		"refused":                 {pod: PodSecurity{RunAsNonRoot: ref(true)}, err: "would run as root"},
		"refused by name":         {image: "root", own: ContainerSecurity{RunAsNonRoot: ref(true)}, err: "would run as root"},
		"container allows root":   {pod: PodSecurity{RunAsNonRoot: ref(true)}, own: ContainerSecurity{RunAsNonRoot: ref(false)}, more: []uint32{0, 50}},
		"no such user":            {image: "ghost", err: `"ghost"`},
		"user out of range":       {own: ContainerSecurity{RunAsUser: ref[int64](-1)}, err: "out of range"},
		"group out of range":      {own: ContainerSecurity{RunAsGroup: ref[int64](1 << 32)}, err: "out of range"},
		"fsGroup out of range":    {pod: PodSecurity{FSGroup: ref[int64](-5)}, err: "out of range"},
		"supplemental over range": {pod: PodSecurity{Groups: []int64{1 << 31}}, err: "out of range"},
	} {
		in := input(t)
		in.Image.User, in.Pod.Security, in.Container.Security = tt.image, tt.pod, tt.own
		s, err := buildSpec(in)
		if tt.err != "" {
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if u := s.Process.User; u.UID != tt.uid || u.GID != tt.gid || !slices.Equal(u.AdditionalGids, tt.more) {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

func TestSpecCapabilities(t *testing.T) {
	without := func(drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(defaultCapabilities), func(c string) bool { return slices.Contains(drop, c) })
	}
	for name, tt := range map[string]struct {
		sec  ContainerSecurity
		want []string
	}{
		"none":          {ContainerSecurity{}, defaultCapabilities},
		"drop":          {ContainerSecurity{DropCapabilities: []string{"NET_RAW", "cap_mknod"}}, without("CAP_NET_RAW", "CAP_MKNOD")},
		"drop all":      {ContainerSecurity{DropCapabilities: []string{"ALL"}}, []string{}},
		"all but":       {ContainerSecurity{DropCapabilities: []string{"all"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}, []string{"CAP_NET_BIND_SERVICE"}},
		"add all":       {ContainerSecurity{AddCapabilities: []string{"ALL"}}, possible()},
		"privileged":    {ContainerSecurity{Privileged: true, DropCapabilities: []string{"ALL"}}, possible()},
		"drop what add": {ContainerSecurity{AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"CHOWN"}}, without("CAP_CHOWN")},
	} {
		s := build(t, func(in *specInput) { in.Container.Security = tt.sec })
		got := s.Process.Capabilities.Bounding
		if name == "add all" { // the default ones too, whether this machine has them or not
			for _, c := range tt.want {
				if !slices.Contains(got, c) {
					t.Errorf("%s: no %s", name, c)
				}
			}
		} else if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
	in := input(t)
	in.Container.Security.AddCapabilities = []string{"FLY"}
	if _, err := buildSpec(in); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "CAP_FLY") {
		t.Errorf("%v", err)
	}
}

func TestSpecSeccomp(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "out.json")
	for p, text := range map[string]string{
		filepath.Join(dir, "sub/log.json"): `{"defaultAction": "SCMP_ACT_LOG"}`, outside: `{"defaultAction": "SCMP_ACT_ALLOW"}`,
		filepath.Join(dir, "bad.json"): `{`,
	} {
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	with := func(pod, own *SecurityProfile, privileged bool) (*specs.LinuxSeccomp, error) {
		in := input(t)
		in.SeccompDir = dir
		in.Pod.Security.Seccomp, in.Container.Security.Seccomp, in.Container.Security.Privileged = pod, own, privileged
		s, err := buildSpec(in)
		if err != nil {
			return nil, err
		}
		return s.Linux.Seccomp, nil
	}
	def, none := &SecurityProfile{Type: "RuntimeDefault"}, &SecurityProfile{Type: "Unconfined"}
	local := func(p string) *SecurityProfile { return &SecurityProfile{Type: "Localhost", Path: p} }
	for name, tt := range map[string]struct {
		pod, own   *SecurityProfile
		privileged bool
		want       specs.LinuxSeccompAction // "": no filter
		kind       *errs.Kind
	}{
		"nothing said":    {want: specs.ActErrno},
		"default":         {own: def, want: specs.ActErrno},
		"pod's":           {pod: none},
		"container's":     {pod: none, own: def, want: specs.ActErrno},
		"privileged":      {own: def, privileged: true},
		"local":           {own: local("sub/log.json"), want: specs.ActLog},
		"local, above":    {own: local("../" + filepath.Base(filepath.Dir(outside)) + "/out.json"), kind: errs.Invalid},
		"local, absolute": {own: local(outside), kind: errs.Invalid},
		"local, link":     {own: local("link.json"), kind: errs.NotFound},
		"local, missing":  {own: local("none.json"), kind: errs.NotFound},
		"local, broken":   {own: local("bad.json"), kind: errs.Invalid},
		"unknown":         {own: &SecurityProfile{Type: "Other"}, kind: errs.Invalid},
	} {
		got, err := with(tt.pod, tt.own, tt.privileged)
		switch {
		case tt.kind != nil:
			if !errors.Is(err, tt.kind) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want == "" && got != nil || tt.want != "" && (got == nil || got.DefaultAction != tt.want):
			t.Errorf("%s: %+v", name, got)
		}
	}
	// The profile follows the capabilities, and is made once for each set of them.
	allows := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, call) && len(c.Args) == 0
		})
	}
	plain := build(t, func(in *specInput) {})
	admin := build(t, func(in *specInput) { in.Container.Security.AddCapabilities = []string{"SYS_ADMIN"} })
	if allows(plain, "mount") || !allows(admin, "mount") {
		t.Error("mount is allowed by the wrong capabilities")
	}
	if again := build(t, func(in *specInput) {}); again.Linux.Seccomp != plain.Linux.Seccomp {
		t.Error("the default profile was resolved twice")
	}
}

func TestSpecConfinementOfOtherKernels(t *testing.T) {
	missing := func(p string) bool { _, err := os.Stat(p); return err != nil }
	for name, tt := range map[string]struct {
		change  func(in *specInput)
		refused bool
	}{
		"apparmor":            {func(in *specInput) { in.Container.Security.AppArmor = &SecurityProfile{"Localhost", "p"} }, missing("/sys/module/apparmor")},
		"apparmor of the pod": {func(in *specInput) { in.Pod.Security.AppArmor = &SecurityProfile{"Localhost", "p"} }, missing("/sys/module/apparmor")},
		"apparmor, default":   {func(in *specInput) { in.Container.Security.AppArmor = &SecurityProfile{Type: "RuntimeDefault"} }, false},
		"apparmor, none":      {func(in *specInput) { in.Container.Security.AppArmor = &SecurityProfile{Type: "Unconfined"} }, false},
		"selinux":             {func(in *specInput) { in.Pod.Security.SELinuxOptions = &SELinux{Level: "s0:c1"} }, missing("/sys/fs/selinux")},
	} {
		in := input(t)
		tt.change(&in)
		if _, err := buildSpec(in); tt.refused != errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSpecNamespaces(t *testing.T) {
	const all = "mount= network=/run/ns/net ipc=/run/ns/ipc uts=/run/ns/uts pid= cgroup="
	for name, tt := range map[string]struct {
		change func(in *specInput)
		want   string
	}{
		"pod":   {func(in *specInput) {}, all},
		"joins": {func(in *specInput) { in.PID = "/proc/9/ns/pid" }, strings.Replace(all, "pid=", "pid=/proc/9/ns/pid", 1)},
		"host": {func(in *specInput) {
			in.Net, in.IPC, in.UTS = "", "", ""
			in.Pod.HostNetwork, in.Pod.HostIPC, in.Pod.HostPID = true, true, true
		}, "mount= cgroup="},
		// A path that was forgotten must not give the host's.
		"new":        {func(in *specInput) { in.Net, in.IPC, in.UTS = "", "", "" }, "mount= network= ipc= uts= pid= cgroup="},
		"privileged": {func(in *specInput) { in.Container.Security.Privileged = true }, strings.TrimSuffix(all, " cgroup=")},
	} {
		var got []string
		for _, n := range build(t, tt.change).Linux.Namespaces {
			got = append(got, string(n.Type)+"="+n.Path)
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %s", name, s)
		}
	}
}

func TestSpecOOMScore(t *testing.T) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		t.Fatal(err)
	}
	total := int64(si.Totalram) * int64(si.Unit)
	full := Resources{CPURequestMilli: 100, CPULimitMilli: 100, MemoryRequestBytes: 1 << 20, MemoryLimitBytes: 1 << 20}
	for name, tt := range map[string]struct {
		own, other Resources
		want       int
	}{
		"best effort":             {want: 1000},
		"guaranteed":              {full, full, -997},
		"one is not":              {full, Resources{}, 999},
		"best effort among":       {Resources{}, full, 999},
		"half of the memory":      {Resources{MemoryRequestBytes: total / 2}, Resources{}, 500},
		"all of the memory":       {Resources{MemoryRequestBytes: total}, Resources{}, 3},
		"more than the memory":    {Resources{MemoryRequestBytes: 2 * total}, Resources{}, 3},
		"request below the limit": {Resources{CPURequestMilli: 50, CPULimitMilli: 100, MemoryRequestBytes: 1 << 20, MemoryLimitBytes: 1 << 20}, full, 999},
	} {
		s := build(t, func(in *specInput) {
			in.Pod.Containers = []Container{{Name: "main", Resources: tt.own}, {Name: "other", Resources: tt.other}}
			in.Container = &in.Pod.Containers[0]
		})
		if got := *s.Process.OOMScoreAdj; got != tt.want && !(strings.HasPrefix(name, "half") && got == tt.want+1) {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestSpecResources(t *testing.T) {
	r := build(t, func(in *specInput) {
		in.Container.Resources = Resources{
			CPURequestMilli: 500, CPULimitMilli: 1500, MemoryLimitBytes: 64 << 20, PIDs: 7, HugepageBytes: map[string]int64{"2Mi": 4 << 20, "1Gi": 1 << 30},
		}
	}).Linux.Resources
	if *r.CPU.Shares != 512 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 64<<20 || *r.Pids.Limit != 7 {
		t.Errorf("%+v", r)
	}
	if want := []specs.LinuxHugepageLimit{{Pagesize: "1GiB", Limit: 1 << 30}, {Pagesize: "2MiB", Limit: 4 << 20}}; !reflect.DeepEqual(r.HugepageLimits, want) {
		t.Errorf("%+v", r.HugepageLimits)
	}
	for _, tt := range []struct {
		request, limit int64
		shares         uint64
		quota          int64
	}{{1, 1, 2, 1000}, {1000, 10, 1024, 1000}, {1_000_000, 1_000_000, 262144, 100_000_000}} {
		c := build(t, func(in *specInput) {
			in.Container.Resources = Resources{CPURequestMilli: tt.request, CPULimitMilli: tt.limit}
		}).Linux.Resources.CPU
		if *c.Shares != tt.shares || *c.Quota != tt.quota {
			t.Errorf("%+v: %d, %d", tt, *c.Shares, *c.Quota)
		}
	}
}

func TestSpecMounts(t *testing.T) {
	at := func(s *specs.Spec) (l []string) {
		for _, m := range s.Mounts {
			l = append(l, m.Destination)
		}
		return l
	}
	s := build(t, func(in *specInput) {
		in.Mounts = []specs.Mount{bind("/h/c", "/a/b/c", false), bind("/h/a", "/a", false), bind("/h/hosts", "/etc/hosts", false), bind("/h/b", "/a/b/", true)}
	})
	want := []string{"/proc", "/dev", "/sys", "/a", "/dev/pts", "/dev/mqueue", "/etc/hosts", "/a/b/", "/sys/fs/cgroup", "/a/b/c"}
	if got := at(s); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	for _, m := range s.Mounts {
		if ro := strings.HasPrefix(m.Destination, "/sys"); ro != slices.Contains(m.Options, "ro") && m.Type != "bind" {
			t.Errorf("%+v", m)
		}
	}
	s = build(t, func(in *specInput) {
		in.Mounts = []specs.Mount{bind("/dev", "/dev/", false), bind("/sys", "/sys", false), bind("/shm", "/dev/shm", false)}
	})
	if got := at(s); !slices.Equal(got, []string{"/proc", "/dev/", "/sys", "/dev/shm", "/sys/fs/cgroup"}) {
		t.Errorf("the host's /dev: %v", got)
	}
	s = build(t, func(in *specInput) { in.Container.Security.Privileged = true })
	for _, m := range s.Mounts {
		if slices.Contains(m.Options, "ro") {
			t.Errorf("privileged: %+v", m)
		}
	}
	for want, options := range map[string][]string{"rprivate": {"rbind", "rprivate"}, "rslave": {"rbind", "rslave"}, "rshared": {"rbind", "rshared"}} {
		s := build(t, func(in *specInput) {
			in.Mounts = []specs.Mount{{Destination: "/a", Options: options}, {Destination: "/b", Options: []string{"rslave"}}}
			if want == "rprivate" {
				in.Mounts = in.Mounts[:1]
			}
		})
		if s.Linux.RootfsPropagation != want {
			t.Errorf("%v: %s", options, s.Linux.RootfsPropagation)
		}
	}
}

func TestSpecDevices(t *testing.T) {
	dir := t.TempDir()
	disk, link := filepath.Join(dir, "disk"), filepath.Join(dir, "link")
	if err := unix.Mknod(disk, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 77))); err != nil {
		t.Skip("this user may not make devices: ", err)
	}
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	find := func(s *specs.Spec, path string) *specs.LinuxDevice {
		i := slices.IndexFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
		if i < 0 {
			return nil
		}
		return &s.Linux.Devices[i]
	}
	s := build(t, func(in *specInput) { in.Devices = []string{disk + ":/dev/xvda", link + ":/data/raw:r"} })
	for _, p := range []string{"/dev/xvda", "/data/raw"} {
		if d := find(s, p); d == nil || d.Type != "b" || d.Major != 7 || d.Minor != 77 || d.FileMode.Perm() != 0o600 {
			t.Errorf("%s: %+v", p, d)
		}
	}
	rules := s.Linux.Resources.Devices
	if len(s.Linux.Devices) != 2 || rules[0].Allow || rules[0].Type != "" || rules[0].Access != "rwm" {
		t.Errorf("%+v, %+v", s.Linux.Devices, rules)
	}
	// allowed plays the rules: the last that speaks of the access decides.
	allowed := func(kind string, major, minor int64, access string) bool {
		ok := true
		for _, r := range rules {
			if (r.Type == "" || r.Type == kind) && (r.Major == nil || *r.Major == major) && (r.Minor == nil || *r.Minor == minor) && strings.Contains(r.Access, access) {
				ok = r.Allow
			}
		}
		return ok
	}
	for _, tt := range []struct {
		kind         string
		major, minor int64
		access       string
		want         bool
	}{
		{"c", 1, 3, "w", true}, {"c", 1, 9, "r", true}, {"c", 5, 0, "r", true}, {"c", 5, 2, "w", true}, {"c", 136, 12, "w", true},
		{"c", 1, 1, "r", false}, {"c", 1, 1, "m", true}, {"b", 8, 0, "r", false}, {"b", 8, 0, "m", true}, {"c", 10, 229, "r", false},
		{"b", 7, 77, "w", true}, {"b", 7, 78, "r", false}, {"b", 1, 3, "r", false},
	} {
		if got := allowed(tt.kind, tt.major, tt.minor, tt.access); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	rules = build(t, func(in *specInput) { in.Devices = []string{disk + ":/dev/xvda:r"} }).Linux.Resources.Devices
	if !allowed("b", 7, 77, "r") || allowed("b", 7, 77, "w") {
		t.Errorf("read-only: %+v", rules)
	}
	for _, bad := range []string{filepath.Join(dir, "none") + ":/dev/x", dir + ":/dev/x", "nothing"} {
		in := input(t)
		in.Devices = []string{bad}
		if _, err := buildSpec(in); err == nil {
			t.Errorf("%s is taken for a device", bad)
		}
	}

	// A privileged container has the host's devices, and its block volumes all the same.
	s = build(t, func(in *specInput) {
		in.Container.Security.Privileged = true
		in.Devices = []string{disk + ":/dev/xvda"}
	})
	if d := find(s, "/dev/xvda"); d == nil || d.Major != 7 {
		t.Errorf("privileged: %+v", d)
	}
	if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rwm" || r[0].Type != "" {
		t.Errorf("privileged: %+v", r)
	}
	for _, p := range []string{"/dev/kmsg", "/dev/net/tun", "/dev/fuse"} {
		if _, err := os.Stat(p); err == nil && find(s, p) == nil {
			t.Errorf("privileged: no %s", p)
		}
	}
	for _, d := range s.Linux.Devices {
		if strings.HasPrefix(d.Path, "/dev/pts/") || d.Path == "/dev/null" || d.Path == "/dev/console" {
			t.Errorf("privileged: %s is the container's own", d.Path)
		}
	}
}
