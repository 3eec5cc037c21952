package pod

import (
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// specInput is what a container's OCI specification is made of.
type specInput struct {
	Pod       *Spec
	Container *Container
	Image     ocispec.ImageConfig
	Env       []string
	Layers    []string      // topmost first; for user names
	Mounts    []specs.Mount // volumes and the pod's files, with sources on the host
	Devices   []string      // block volumes: host path:container path[:r]

	Net, IPC, UTS, PID, User string // namespaces to join; "" is a new one, or the host's where the pod says so

	SeccompDir   string
	MaxPIDs      int64
	CgroupParent string
	Expand       func(string) string // $(NAME) in command and arguments
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// buildSpec writes the OCI runtime specification of a container.
func buildSpec(in specInput) (*specs.Spec, error) {
	c, sec := in.Container, &in.Container.Security
	args, err := arguments(in)
	if err != nil {
		return nil, err
	}
	id, err := runAs(in)
	if err != nil {
		return nil, err
	}
	if err := id.checkIDs(in.Pod.Users, c.Name); err != nil {
		return nil, err
	}
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = in.Image.WorkingDir
	}
	cwd = filepath.Join("/", cwd) // images may say it without the slash
	caps, err := capabilities(sec)
	if err != nil {
		return nil, err
	}
	oom := oomScore(in.Pod, c)
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "/", Readonly: sec.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal: c.TTY, Args: args, Env: environment(in, id), Cwd: cwd,
			User:            specs.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: sec.AllowPrivilegeEscalation != nil && !*sec.AllowPrivilegeEscalation && !sec.Privileged,
			OOMScoreAdj:     &oom,
		},
		Linux: &specs.Linux{
			Namespaces:        namespaces(in),
			RootfsPropagation: "rprivate",
			Resources:         resources(in),
		},
	}
	for _, m := range in.Mounts {
		switch {
		case slices.Contains(m.Options, "rshared"):
			s.Linux.RootfsPropagation = "rshared"
		case slices.Contains(m.Options, "rslave") && s.Linux.RootfsPropagation == "rprivate":
			s.Linux.RootfsPropagation = "rslave"
		}
	}
	s.Mounts = append(slices.DeleteFunc(systemMounts(sec.Privileged, in.Pod.Users), func(m specs.Mount) bool { return replaced(m.Destination, in.Mounts) }), in.Mounts...)
	sort.SliceStable(s.Mounts, func(i, j int) bool { return depth(s.Mounts[i].Destination) < depth(s.Mounts[j].Destination) })
	if err := devices(in, s); err != nil {
		return nil, err
	}
	if !sec.Privileged && sec.ProcMount != "Unmasked" {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
	}
	if err := confine(in, s, caps); err != nil {
		return nil, err
	}
	if users := in.Pod.Users; users != nil {
		s.Linux.UIDMappings, s.Linux.GIDMappings = users.UIDs, users.GIDs
	}
	return s, nil
}

// replaced tells whether one of the container's own mounts takes the place of a system
// mount. With a /dev of its own, say the host's, the container gets that one's pts too.
func replaced(dest string, own []specs.Mount) bool {
	return slices.ContainsFunc(own, func(m specs.Mount) bool {
		at := filepath.Clean(m.Destination)
		return at == dest || at == "/dev" && strings.HasPrefix(dest, "/dev/")
	})
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(filepath.Clean(p), "/")
}

// arguments merges the manifest's command and args with the image's, as Kubernetes
// does: a command drops the image's arguments too.
func arguments(in specInput) ([]string, error) {
	each := func(l []string) (out []string) {
		for _, a := range l {
			out = append(out, in.Expand(a))
		}
		return out
	}
	c := in.Container
	var args []string
	switch {
	case len(c.Command) > 0:
		args = append(each(c.Command), each(c.Args)...)
	case len(c.Args) > 0:
		args = append(slices.Clone(in.Image.Entrypoint), each(c.Args)...)
	default:
		args = append(slices.Clone(in.Image.Entrypoint), in.Image.Cmd...)
	}
	if len(args) == 0 {
		return nil, errs.New(errs.Invalid, "container %s: image %s says no command; set command in the manifest", c.Name, c.Image)
	}
	return args, nil
}

// runAs decides user and groups.
func runAs(in specInput) (identity, error) {
	pod, sec := &in.Pod.Security, &in.Container.Security
	user, group, nonRoot := pod.RunAsUser, pod.RunAsGroup, pod.RunAsNonRoot
	if sec.RunAsUser != nil {
		user = sec.RunAsUser
	}
	if sec.RunAsGroup != nil {
		group = sec.RunAsGroup
	}
	if sec.RunAsNonRoot != nil {
		nonRoot = sec.RunAsNonRoot
	}
	var id identity
	var err error
	if user != nil {
		if *user < 0 || *user > math.MaxInt32 {
			return id, errs.New(errs.Invalid, "container %s: runAsUser %d is out of range; users are 0 to %d", in.Container.Name, *user, math.MaxInt32)
		}
		id, err = lookupUser(in.Layers, itoa(*user))
	} else if sec.RunAsUserName != "" {
		id, err = lookupUser(in.Layers, sec.RunAsUserName)
	} else {
		id, err = lookupUser(in.Layers, in.Image.User)
	}
	if err != nil {
		return id, err
	}
	if pod.GroupsPolicy == "Strict" {
		id.groups = nil
	}
	groups := slices.Clone(pod.Groups)
	if pod.FSGroup != nil {
		groups = append(groups, *pod.FSGroup)
	}
	if group != nil {
		groups = append(groups, *group)
		id.gid = uint32(*group)
	}
	for _, g := range groups {
		if g < 0 || g > math.MaxInt32 {
			return id, errs.New(errs.Invalid, "container %s: group %d is out of range; groups are 0 to %d", in.Container.Name, g, math.MaxInt32)
		}
		id.groups = append(id.groups, uint32(g))
	}
	// Among the supplemental groups too: a program that changes its primary group must
	// not lose this one, by which files may be denied to it.
	id.groups = append(id.groups, id.gid)
	slices.Sort(id.groups)
	id.groups = slices.Compact(id.groups)
	if nonRoot != nil && *nonRoot && id.uid == 0 {
		return id, errs.New(errs.Invalid, "container %s would run as root, and runAsNonRoot is set; set runAsUser, or a user in the image", in.Container.Name)
	}
	return id, nil
}

func environment(in specInput, id identity) []string {
	have := envMap(in.Env)
	var env []string
	if _, ok := have["PATH"]; !ok {
		env = append(env, defaultPath)
	}
	if _, ok := have["HOSTNAME"]; !ok {
		name := hostname(in.Pod)
		if in.Pod.HostNetwork { // and with it the host's name
			if host, err := os.Hostname(); err == nil {
				name = host
			}
		}
		env = append(env, "HOSTNAME="+name)
	}
	if _, ok := have["HOME"]; !ok {
		home := id.home
		if home == "" {
			home = "/"
		}
		env = append(env, "HOME="+home)
	}
	if _, ok := have["TERM"]; !ok && in.Container.TTY {
		env = append(env, "TERM=xterm")
	}
	return append(env, in.Env...)
}

// namespaces lists those that the container joins or gets. One that is left out is the
// host's, so only what the manifest says leaves one out.
func namespaces(in specInput) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(kind specs.LinuxNamespaceType, path string, host bool) {
		if !host {
			list = append(list, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	add(specs.NetworkNamespace, in.Net, in.Net == "" && in.Pod.HostNetwork)
	add(specs.IPCNamespace, in.IPC, in.IPC == "" && in.Pod.HostIPC)
	add(specs.UTSNamespace, in.UTS, in.UTS == "" && in.Pod.HostNetwork)
	add(specs.PIDNamespace, in.PID, in.PID == "" && in.Pod.HostPID)
	add(specs.UserNamespace, in.User, in.Pod.Users == nil)
	add(specs.CgroupNamespace, "", in.Container.Security.Privileged)
	return list
}

// oomScore is what kubelet gives by quality of service: who asked for more than
// others is killed later.
func oomScore(p *Spec, c *Container) int {
	guaranteed, any := true, false
	for _, l := range [][]Container{p.Init, p.Containers} {
		for _, c := range l {
			r := c.Resources
			if r.CPURequestMilli != 0 || r.CPULimitMilli != 0 || r.MemoryRequestBytes != 0 || r.MemoryLimitBytes != 0 {
				any = true
			}
			if r.CPULimitMilli == 0 || r.MemoryLimitBytes == 0 || r.CPURequestMilli != r.CPULimitMilli || r.MemoryRequestBytes != r.MemoryLimitBytes {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return 1000
	case guaranteed:
		return -997
	}
	var si unix.Sysinfo_t
	unix.Sysinfo(&si)
	total := int64(si.Totalram) * int64(si.Unit)
	score := 1000 - 1000*c.Resources.MemoryRequestBytes/max(1, total)
	return int(min(999, max(3, score)))
}

func resources(in specInput) *specs.LinuxResources {
	r := in.Container.Resources
	shares := uint64(2)
	if r.CPURequestMilli > 0 {
		shares = min(262144, max(2, uint64(r.CPURequestMilli)*1024/1000)) // the kernel's bounds
	}
	res := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}
	if r.CPULimitMilli > 0 {
		period := uint64(100_000)
		quota := max(1000, r.CPULimitMilli*int64(period)/1000)
		res.CPU.Quota, res.CPU.Period = &quota, &period
	}
	if limit := r.MemoryLimitBytes; limit > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	}
	pids := in.MaxPIDs
	if r.PIDs > 0 {
		pids = r.PIDs
	}
	if pids > 0 {
		res.Pids = &specs.LinuxPids{Limit: &pids}
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageBytes)) {
		res.HugepageLimits = append(res.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size + "B", Limit: uint64(r.HugepageBytes[size])})
	}
	return res
}

// ttyGroup owns terminals, by a custom that grantpt(3) has.
const ttyGroup = 5

func systemMounts(privileged bool, users *namespace.IDMaps) []specs.Mount {
	sys, cg := "ro", "ro"
	if privileged {
		sys, cg = "rw", "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if users == nil || users.MapsGroup(ttyGroup) {
		pts = append(pts, "gid="+itoa(ttyGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sys}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cg}},
	}
}

// devices adds the block volumes, and for a privileged container all of the host's,
// and the rules of the device control group.
func devices(in specInput, s *specs.Spec) error {
	var own []specs.LinuxDevice
	var access []string
	for _, spec := range in.Devices {
		parts := strings.SplitN(spec, ":", 3)
		if len(parts) < 2 {
			return errs.New(errs.Internal, "device %q is not host:container", spec)
		}
		d, err := device(parts[0], parts[1], unix.Stat)
		if err != nil {
			return err
		}
		own = append(own, d)
		if len(parts) == 3 {
			access = append(access, "rm")
		} else {
			access = append(access, "rwm")
		}
	}
	if in.Container.Security.Privileged {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range hostDevices() {
			if !slices.ContainsFunc(own, func(o specs.LinuxDevice) bool { return filepath.Clean(o.Path) == d.Path }) {
				s.Linux.Devices = append(s.Linux.Devices, d)
			}
		}
		s.Linux.Devices = append(s.Linux.Devices, own...)
		return nil
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	add := func(kind string, major, minor int64, access string) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access, Major: &major}
		if major < 0 {
			r.Major = nil
		}
		if minor >= 0 {
			r.Minor = &minor
		}
		rules = append(rules, r)
	}
	add("c", -1, -1, "m")
	add("b", -1, -1, "m")
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		add("c", d[0], d[1], "rwm")
	}
	add("c", 136, -1, "rwm")
	for i, d := range own {
		add(d.Type, d.Major, d.Minor, access[i])
	}
	s.Linux.Devices = own
	s.Linux.Resources.Devices = rules
	return nil
}

// builtin are the devices that every container gets.
var builtin = []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}

// elsewhere are directories of /dev that a container has its own of, or that belong to
// the host's other containers.
var elsewhere = []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}

// hostDevices are the devices below the host's /dev. They come and go while one looks.
func hostDevices() (list []specs.LinuxDevice) {
	filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case e.IsDir():
			if slices.Contains(elsewhere, e.Name()) && filepath.Dir(path) == "/dev" {
				return filepath.SkipDir
			}
			return nil
		case e.Type()&fs.ModeDevice == 0 || filepath.Dir(path) == "/dev" && slices.Contains(builtin, e.Name()):
			return nil
		}
		if d, err := device(path, path, unix.Lstat); err == nil {
			list = append(list, d)
		}
		return nil
	})
	return list
}

func device(from, to string, stat func(string, *unix.Stat_t) error) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := stat(from, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "stat", Path: from, Err: err}
	}
	d := specs.LinuxDevice{Path: to, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return d, errs.New(errs.Invalid, "%s is no device", from)
	}
	return d, nil
}
