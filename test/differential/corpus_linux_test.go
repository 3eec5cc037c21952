package differential

import (
	"os"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func namespaceCases() []Case {
	var cases []Case
	all := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace, specs.TimeNamespace}
	for _, kind := range all {
		cases = append(cases,
			Case{"namespace-new-" + string(kind), func(_ testing.TB, b *Bundle) { b.Namespace(kind, "") }},
			Case{"namespace-host-" + string(kind), func(_ testing.TB, b *Bundle) {
				b.WithoutNamespace(kind)
				if kind == specs.UTSNamespace {
					b.Spec.Hostname = ""
				}
				if kind == specs.NetworkNamespace { // a sysfs of the host's is its own
					b.Spec.Mounts[5] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "ro", "nosuid", "noexec", "nodev"}}
				}
			}},
			Case{"namespace-missing-" + string(kind), func(_ testing.TB, b *Bundle) { b.Namespace(kind, "/no/such/namespace") }},
			Case{"namespace-no-namespace-" + string(kind), func(_ testing.TB, b *Bundle) { b.Namespace(kind, "/etc/passwd") }},
		)
	}
	files := map[specs.LinuxNamespaceType]struct {
		name string
		flag uintptr
	}{
		specs.PIDNamespace: {"pid", syscall.CLONE_NEWPID}, specs.NetworkNamespace: {"net", syscall.CLONE_NEWNET}, specs.IPCNamespace: {"ipc", syscall.CLONE_NEWIPC},
		specs.UTSNamespace: {"uts", syscall.CLONE_NEWUTS}, specs.CgroupNamespace: {"cgroup", syscall.CLONE_NEWCGROUP}, specs.TimeNamespace: {"time", syscall.CLONE_NEWTIME},
		specs.MountNamespace: {"mnt", syscall.CLONE_NEWNS}, specs.UserNamespace: {"user", syscall.CLONE_NEWUSER},
	}
	for _, kind := range append(all, specs.UserNamespace) {
		cases = append(cases, Case{"namespace-join-" + string(kind), func(t testing.TB, b *Bundle) {
			file := files[kind].name
			if kind == specs.TimeNamespace {
				file = "time_for_children"
			}
			if kind == specs.UserNamespace {
				b.UserNamespace(t, 100000, 65536)
			}
			b.Namespace(kind, b.Hold(t, files[kind].flag)+"/"+file)
			if kind == specs.MountNamespace {
				b.Env("INSIDE_NOT_ALONE", "1")
			}
			if kind == specs.UserNamespace {
				b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
			}
		}})
	}
	cases = append(cases,
		Case{"namespace-join-several", func(t testing.TB, b *Bundle) {
			ns := b.Hold(t, syscall.CLONE_NEWNET|syscall.CLONE_NEWIPC|syscall.CLONE_NEWUTS)
			b.Namespace(specs.NetworkNamespace, ns+"/net")
			b.Namespace(specs.IPCNamespace, ns+"/ipc")
			b.Namespace(specs.UTSNamespace, ns+"/uts")
			b.Spec.Hostname = ""
		}},
		Case{"namespace-join-wrong-kind", func(t testing.TB, b *Bundle) {
			b.Namespace(specs.NetworkNamespace, b.Hold(t, syscall.CLONE_NEWIPC)+"/ipc")
		}},
		Case{"namespace-join-hostname", func(t testing.TB, b *Bundle) {
			b.Namespace(specs.UTSNamespace, b.Hold(t, syscall.CLONE_NEWUTS)+"/uts")
		}},
		Case{"namespace-twice", func(_ testing.TB, b *Bundle) {
			b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
		}},
		Case{"namespace-unknown", func(_ testing.TB, b *Bundle) { b.Namespace("moon", "") }},
		Case{"namespace-hostname-without", func(_ testing.TB, b *Bundle) { b.WithoutNamespace(specs.UTSNamespace) }},
		with("namespace-only-mount", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
			s.Hostname = ""
			s.Mounts[5] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "ro"}}
		}),
		Case{"time-offsets", func(_ testing.TB, b *Bundle) {
			b.Namespace(specs.TimeNamespace, "")
			b.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 86400, Nanosecs: 5}, "boottime": {Secs: -10}}
		}},
		with("time-offsets-without", func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}}
		}),
		Case{"time-offsets-clock", func(_ testing.TB, b *Bundle) {
			b.Namespace(specs.TimeNamespace, "")
			b.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
		}},
		Case{"user-namespace", func(t testing.TB, b *Bundle) { b.UserNamespace(t, 100000, 65536) }},
		Case{"user-namespace-user", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 7}}
		}},
		Case{"user-namespace-capabilities", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Process.Capabilities = everyCapability()
			b.Spec.Process.NoNewPrivileges = false
		}},
		Case{"user-namespace-cgroup", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Namespace(specs.CgroupNamespace, "")
			b.Mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro")
		}},
		Case{"user-namespace-mounts", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Mount("/mnt", "bind", b.Mkdir(t, "data"), "rbind", "ro", "nosuid", "nodev")
			b.Mount("/mem", "tmpfs", "tmpfs", "mode=0700", "uid=1000")
		}},
		Case{"user-namespace-devices", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null2", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o666))}}
		}},
		Case{"user-namespace-terminal", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Process.Terminal = true
		}},
		Case{"user-namespace-several", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 1000, HostID: 200000, Size: 100}}
		}},
		Case{"user-namespace-identity", func(t testing.TB, b *Bundle) {
			b.Namespace(specs.UserNamespace, "")
			m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 4294967295}}
			b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = m, m
		}},
		Case{"user-namespace-no-mapping", func(_ testing.TB, b *Bundle) { b.Namespace(specs.UserNamespace, "") }},
		Case{"user-namespace-uids-only", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			b.Spec.Linux.GIDMappings = nil
		}},
		Case{"user-namespace-without-root", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			m := []specs.LinuxIDMapping{{ContainerID: 1, HostID: 100000, Size: 10}}
			b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = m, m
		}},
		Case{"user-namespace-unmapped-user", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 100)
			b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
		}},
		Case{"user-namespace-overlap", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 5, HostID: 200000, Size: 10}}
			b.Spec.Linux.UIDMappings = m
		}},
		with("mappings-without-user-namespace", func(s *specs.Spec) {
			m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
		}),
	)
	for name, value := range map[string]string{
		"kernel.shm_rmid_forced": "1", "kernel.shmmax": "1000000", "kernel.msgmax": "4096", "kernel.sem": "100 3200 10 20", "fs.mqueue.msg_max": "20",
		"net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 5", "net.ipv4.ip_local_port_range": "2000 3000", "net/ipv4/tcp_syncookies": "0", "net.core.somaxconn": "100",
		"kernel.domainname": "from.sysctl", "kernel.hostname": "from-sysctl",
		"kernel.pid_max": "5000", "vm.swappiness": "10", "net.no.such": "1", "kernel.shmmni": "x", "net.ipv4.conf.lo.forwarding": "1", "user.max_pid_namespaces": "1", "": "1",
	} {
		cases = append(cases, with("sysctl-"+strings.ReplaceAll(name, "/", "_"), func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{name: value}
			s.Process.Env = append(s.Process.Env, "INSIDE_READ=/proc/sys/"+strings.ReplaceAll(name, ".", "/"))
		}))
	}
	cases = append(cases,
		with("sysctl-host-network", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:1:1], s.Linux.Namespaces[2:]...)
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		}),
		with("sysctl-host-ipc", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:2:2], s.Linux.Namespaces[3:]...)
			s.Linux.Sysctl = map[string]string{"kernel.shmmax": "100000"}
		}),
		with("sysctl-several", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "100000", "kernel.msgmax": "4096", "fs.mqueue.msg_max": "20"}
			s.Process.Env = append(s.Process.Env, "INSIDE_READ=/proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max")
		}),
		with("net-devices", func(s *specs.Spec) {
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"no-such-device": {}}
		}),
		with("memory-policy-bind", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
		}),
		with("memory-policy-interleave", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		}),
		with("memory-policy-default", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault} }),
		with("memory-policy-local", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolLocal} }),
		with("memory-policy-unknown", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_FAR", Nodes: "0"} }),
		with("memory-policy-nodes", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "no"}
		}),
		with("memory-policy-node-missing", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "63"}
		}),
		with("rdt", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x", L3CacheSchema: "L3:0=f"} }),
		with("mount-label", func(s *specs.Spec) { s.Linux.MountLabel = "system_u:object_r:container_file_t:s0" }),
	)
	return cases
}

func resourceCases() []Case {
	limit := func(name string, change func(r *specs.LinuxResources)) Case {
		return with("resources-"+name, func(s *specs.Spec) { change(s.Linux.Resources) })
	}
	memory := func(name string, m specs.LinuxMemory) Case {
		return limit("memory-"+name, func(r *specs.LinuxResources) { r.Memory = &m })
	}
	cpu := func(name string, c specs.LinuxCPU) Case {
		return limit("cpu-"+name, func(r *specs.LinuxResources) { r.CPU = &c })
	}
	block := func(name string, c specs.LinuxBlockIO) Case {
		return limit("block-"+name, func(r *specs.LinuxResources) { r.BlockIO = &c })
	}
	const mib = 1 << 20
	throttle := func(rate uint64) (l []specs.LinuxThrottleDevice) {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 254, 0
		return append(l, d)
	}
	weight := specs.LinuxWeightDevice{Weight: ptr(uint16(400))}
	weight.Major, weight.Minor = 254, 0
	return []Case{
		with("resources-none", func(s *specs.Spec) { s.Linux.Resources = nil }),
		with("resources-empty", func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{} }),
		memory("limit", specs.LinuxMemory{Limit: ptr(int64(64 * mib))}),
		memory("limit-unaligned", specs.LinuxMemory{Limit: ptr(int64(64*mib + 123))}),
		memory("limit-none", specs.LinuxMemory{Limit: ptr(int64(-1))}),
		memory("limit-0", specs.LinuxMemory{Limit: ptr(int64(0))}),
		memory("limit-tiny", specs.LinuxMemory{Limit: ptr(int64(1000))}),
		memory("limit-swap", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(128 * mib))}),
		memory("limit-swap-equal", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(64 * mib))}),
		memory("limit-swap-unlimited", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(-1))}),
		memory("limit-swap-less", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(32 * mib))}),
		memory("swap-alone", specs.LinuxMemory{Swap: ptr(int64(64 * mib))}),
		memory("reservation", specs.LinuxMemory{Reservation: ptr(int64(32 * mib))}),
		memory("limit-reservation", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Reservation: ptr(int64(32 * mib))}),
		//lint:ignore SA1019 it has to be taken, whatever comes of it
		memory("kernel", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Kernel: ptr(int64(32 * mib))}),
		memory("kernel-tcp", specs.LinuxMemory{KernelTCP: ptr(int64(32 * mib))}),
		memory("swappiness", specs.LinuxMemory{Swappiness: ptr(uint64(10))}),
		memory("swappiness-bad", specs.LinuxMemory{Swappiness: ptr(uint64(1000))}),
		memory("oom-off", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), DisableOOMKiller: ptr(true)}),
		memory("hierarchy", specs.LinuxMemory{UseHierarchy: ptr(true)}),
		memory("check", specs.LinuxMemory{Limit: ptr(int64(64 * mib)), CheckBeforeUpdate: ptr(true)}),
		cpu("shares", specs.LinuxCPU{Shares: ptr(uint64(512))}),
		cpu("shares-0", specs.LinuxCPU{Shares: ptr(uint64(0))}),
		cpu("shares-1", specs.LinuxCPU{Shares: ptr(uint64(1))}),
		cpu("shares-large", specs.LinuxCPU{Shares: ptr(uint64(500000))}),
		cpu("quota", specs.LinuxCPU{Quota: ptr(int64(50000))}),
		cpu("quota-period", specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(200000))}),
		cpu("quota-none", specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(100000))}),
		cpu("quota-small", specs.LinuxCPU{Quota: ptr(int64(10))}),
		cpu("period", specs.LinuxCPU{Period: ptr(uint64(50000))}),
		cpu("period-bad", specs.LinuxCPU{Period: ptr(uint64(5))}),
		cpu("burst", specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(10000))}),
		cpu("set", specs.LinuxCPU{Cpus: "0", Mems: "0"}),
		cpu("set-cpus", specs.LinuxCPU{Cpus: "0-1"}),
		cpu("set-bad", specs.LinuxCPU{Cpus: "many"}),
		cpu("set-missing", specs.LinuxCPU{Cpus: "500"}),
		cpu("set-mems-missing", specs.LinuxCPU{Mems: "60"}),
		cpu("idle", specs.LinuxCPU{Idle: ptr(int64(1))}),
		cpu("idle-0", specs.LinuxCPU{Idle: ptr(int64(0))}),
		cpu("realtime", specs.LinuxCPU{RealtimeRuntime: ptr(int64(0)), RealtimePeriod: ptr(uint64(1000000))}),
		limit("pids", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(100))} }),
		limit("pids-none", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))} }),
		limit("pids-0", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(0))} }),
		limit("pids-absent", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{} }),
		limit("pids-enough", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(20))} }),
		block("weight", specs.LinuxBlockIO{Weight: ptr(uint16(300))}),
		block("weight-bad", specs.LinuxBlockIO{Weight: ptr(uint16(5))}),
		block("leaf-weight", specs.LinuxBlockIO{LeafWeight: ptr(uint16(300))}),
		block("weight-device", specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{weight}}),
		block("read-bps", specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(mib)}),
		block("write-bps", specs.LinuxBlockIO{ThrottleWriteBpsDevice: throttle(2 * mib)}),
		block("read-iops", specs.LinuxBlockIO{ThrottleReadIOPSDevice: throttle(100)}),
		block("write-iops", specs.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle(200)}),
		limit("hugepages", func(r *specs.LinuxResources) {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 * mib}}
		}),
		limit("hugepages-size", func(r *specs.LinuxResources) {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 3 * mib}}
		}),
		limit("network-class", func(r *specs.LinuxResources) { r.Network = &specs.LinuxNetwork{ClassID: ptr(uint32(0x100001))} }),
		limit("network-priority", func(r *specs.LinuxResources) {
			r.Network = &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 5}}}
		}),
		limit("rdma", func(r *specs.LinuxResources) {
			r.Rdma = map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr(uint32(3))}}
		}),
		limit("unified", func(r *specs.LinuxResources) { r.Unified = map[string]string{"memory.high": "100000000"} }),
		limit("unified-several", func(r *specs.LinuxResources) {
			r.Unified = map[string]string{"cpuset.cpus": "0", "hugetlb.2MB.max": "2097152", "pids.max": "100", "cpu.weight": "33"}
		}),
		limit("unified-misc", func(r *specs.LinuxResources) { r.Unified = map[string]string{"misc.max": "no_such_resource 1"} }),
		limit("unified-bad", func(r *specs.LinuxResources) { r.Unified = map[string]string{"no.such.file": "1"} }),
		limit("all", func(r *specs.LinuxResources) {
			r.Memory = &specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(128 * mib)), Reservation: ptr(int64(32 * mib))}
			r.CPU = &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0", Mems: "0"}
			r.Pids = &specs.LinuxPids{Limit: ptr(int64(100))}
		}),
		{"cgroups-path-relative", func(_ testing.TB, b *Bundle) {
			b.Spec.Linux.CgroupsPath = strings.TrimPrefix(b.Spec.Linux.CgroupsPath, "/")
		}},
		{"cgroups-path-deep", func(_ testing.TB, b *Bundle) { b.Spec.Linux.CgroupsPath += "/below/and/below" }},
		{"cgroups-path-dots", func(_ testing.TB, b *Bundle) { b.Spec.Linux.CgroupsPath += "/../" + b.ID }},
		{"cgroups-path-escape", func(_ testing.TB, b *Bundle) {
			b.Spec.Linux.CgroupsPath = "/../.." + b.Spec.Linux.CgroupsPath
		}},
	}
}

func deviceCases() []Case {
	device := func(name string, d ...specs.LinuxDevice) Case {
		return with("device-"+name, func(s *specs.Spec) { s.Linux.Devices = d })
	}
	rules := func(name string, r ...specs.LinuxDeviceCgroup) Case {
		return with("device-rules-"+name, func(s *specs.Spec) {
			s.Linux.Resources.Devices = r
			s.Process.Capabilities = everyCapability()
		})
	}
	deny := specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"}
	allow := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			r.Major = &major
		}
		if minor >= 0 {
			r.Minor = &minor
		}
		return r
	}
	mode := ptr(os.FileMode(0o640))
	return []Case{
		device("character", specs.LinuxDevice{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3}),
		device("mode-owner", specs.LinuxDevice{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3, FileMode: mode, UID: ptr(uint32(12)), GID: ptr(uint32(13))}),
		device("unbuffered", specs.LinuxDevice{Path: "/dev/mine", Type: "u", Major: 1, Minor: 3, FileMode: mode}),
		device("block", specs.LinuxDevice{Path: "/dev/disk", Type: "b", Major: 7, Minor: 0, FileMode: mode}),
		device("fifo", specs.LinuxDevice{Path: "/dev/pipe", Type: "p", FileMode: mode}),
		device("deep", specs.LinuxDevice{Path: "/dev/a/b/c", Type: "c", Major: 10, Minor: 229, FileMode: mode}),
		device("outside-dev", specs.LinuxDevice{Path: "/opt/device", Type: "c", Major: 1, Minor: 5, FileMode: mode}),
		device("default-again", specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: mode}),
		device("default-other", specs.LinuxDevice{Path: "/dev/zero", Type: "c", Major: 1, Minor: 3, FileMode: mode}),
		device("umask", specs.LinuxDevice{Path: "/dev/open", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o666))}),
		device("several", specs.LinuxDevice{Path: "/dev/x1", Type: "c", Major: 1, Minor: 3}, specs.LinuxDevice{Path: "/dev/x2", Type: "c", Major: 1, Minor: 5}),
		device("twice", specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}, specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}),
		device("type-bad", specs.LinuxDevice{Path: "/dev/x", Type: "z", Major: 1, Minor: 3}),
		device("type-missing", specs.LinuxDevice{Path: "/dev/x", Major: 1, Minor: 3}),
		device("relative", specs.LinuxDevice{Path: "dev/x", Type: "c", Major: 1, Minor: 3}),
		device("on-file", specs.LinuxDevice{Path: "/etc/passwd", Type: "c", Major: 1, Minor: 3}),
		device("ptmx", specs.LinuxDevice{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2}),
		rules("none"), rules("deny", deny), rules("all", specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}), rules("all-typed", deny, allow("a", -1, -1, "rwm")),
		rules("fuse", deny, allow("c", 10, 229, "rwm")), rules("tun", deny, allow("c", 10, 200, "rw")), rules("read-only", deny, allow("c", 1, 11, "r")),
		rules("mknod-only", deny, allow("c", 4, 64, "m")), rules("any-minor", deny, allow("c", 4, -1, "rwm")), rules("any-major", deny, allow("c", -1, 1, "rwm")),
		rules("block", deny, allow("b", 7, -1, "rwm")), rules("block-all", deny, allow("b", -1, -1, "rwm")),
		rules("deny-after", deny, allow("c", 1, -1, "rwm"), specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: "rwm"}),
		rules("deny-null", deny, specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"}),
		rules("allow-then-deny-all", allow("c", 10, 229, "rwm"), deny),
		rules("deny-part", allow("a", -1, -1, "rwm"), specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "w"}),
		rules("type-bad", deny, allow("z", 1, 3, "rwm")), rules("access-bad", deny, allow("c", 1, 3, "xyz")), rules("access-empty", deny, allow("c", 1, 3, "")),
		rules("console", deny, allow("c", 5, 1, "rwm")),
	}
}
