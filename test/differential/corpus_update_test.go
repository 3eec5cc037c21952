package differential

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// updateCases change the limits of a container that runs, once or several times: each flag of
// the command update, and what it reads as JSON.
func updateCases() (all []Case) {
	const mib = 1 << 20
	limits := func(r *specs.LinuxResources) {
		r.Memory = &specs.LinuxMemory{Limit: ptr(int64(64 * mib))}
		r.CPU = &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(512))}
		r.Pids = &specs.LinuxPids{Limit: ptr(int64(200))}
	}
	both := func(r *specs.LinuxResources) {
		r.Memory = &specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(128 * mib))}
	}
	none := func(*specs.LinuxResources) {}
	add := func(name string, had func(*specs.LinuxResources), updates ...Update) {
		all = append(all, Case{"update-" + name, func(_ testing.TB, b *Bundle) {
			had(b.Spec.Linux.Resources)
			b.Updates = updates
		}})
	}
	flags := func(args ...string) Update { return Update{Args: args} }
	json := func(s string) Update { return Update{Args: []string{"--resources", "-"}, Stdin: s} }

	add("nothing", limits, flags())
	add("memory", limits, flags("--memory", "96m"))
	add("memory-less", limits, flags("--memory", "50331648"))
	add("memory-none", limits, flags("--memory", "-1"))
	add("memory-zero", limits, flags("--memory", "0"))
	add("memory-bad", limits, flags("--memory", "much"))
	add("memory-swap", limits, flags("--memory", "96m", "--memory-swap", "160m"))
	add("memory-swap-less", limits, flags("--memory", "96m", "--memory-swap", "80m"))
	add("memory-swap-alone", both, flags("--memory-swap", "256M"))
	add("memory-swap-none", both, flags("--memory-swap", "-1"))
	add("memory-of-both", both, flags("--memory", "96m"))
	add("memory-of-both-less", both, flags("--memory", "32m"))
	add("memory-of-both-twice", both, flags("--memory", "32m"), flags("--memory", "96m"))
	add("memory-above-both", both, flags("--memory", "256m"))
	add("memory-none-of-both", both, flags("--memory", "-1"))
	add("memory-and-both", both, flags("--memory", "256m", "--memory-swap", "512m"))
	add("memory-both-less", both, flags("--memory", "32m", "--memory-swap", "48m"))
	add("memory-reservation", limits, flags("--memory-reservation", "32m"))
	add("memory-reservation-none", limits, flags("--memory-reservation", "32m"), flags("--memory-reservation", "-1"))
	add("memory-kernel", limits, flags("--kernel-memory", "32m", "--kernel-memory-tcp", "16m"))
	add("memory-units", limits, flags("--memory", "98304k"), flags("--memory-reservation", "33554432b"))
	add("cpu-quota", limits, flags("--cpu-quota", "60000"))
	add("cpu-quota-none", limits, flags("--cpu-quota", "-1"))
	add("cpu-quota-bad", limits, flags("--cpu-quota", "5"))
	add("cpu-period", limits, flags("--cpu-period", "200000"))
	add("cpu-period-bad", limits, flags("--cpu-period", "1"))
	add("cpu-both", limits, flags("--cpu-period", "10000", "--cpu-quota", "3000"))
	add("cpu-both-of-none", none, flags("--cpu-period", "10000", "--cpu-quota", "3000"))
	add("cpu-period-of-none", none, flags("--cpu-period", "10000"))
	add("cpu-burst", limits, flags("--cpu-burst", "20000"))
	add("cpu-burst-then-less", limits, flags("--cpu-burst", "20000"), flags("--cpu-quota", "10000", "--cpu-burst", "5000"))
	add("cpu-burst-with-quota", limits, flags("--cpu-burst", "80000", "--cpu-quota", "90000"))
	add("cpu-burst-above", limits, flags("--cpu-burst", "80000"))
	add("cpu-share", limits, flags("--cpu-share", "2048"))
	add("cpu-share-zero", limits, flags("--cpu-share", "0"))
	add("cpu-idle", none, flags("--cpu-idle", "1"))
	add("cpu-idle-and-back", none, flags("--cpu-idle", "1"), flags("--cpu-idle", "0"))
	add("cpu-idle-bad", none, flags("--cpu-idle", "2"))
	add("cpuset", limits, flags("--cpuset-cpus", "0", "--cpuset-mems", "0"))
	add("cpuset-bad", limits, flags("--cpuset-cpus", "4000"))
	add("pids", limits, flags("--pids-limit", "100"))
	add("pids-none", limits, flags("--pids-limit", "-1"))
	add("pids-zero", limits, flags("--pids-limit", "0"))
	add("block-weight-bad", none, flags("--blkio-weight", "5"))
	add("all", none, flags("--memory", "96m", "--memory-swap", "128m", "--memory-reservation", "32m", "--cpu-period", "50000", "--cpu-quota", "20000",
		"--cpu-burst", "1000", "--cpu-share", "700", "--cpuset-cpus", "0", "--pids-limit", "99"))
	add("half-refused", limits, flags("--cpu-share", "2048", "--memory", "96m", "--cpuset-cpus", "4000", "--pids-limit", "100"))
	add("half-refused-late", both, flags("--cpu-quota", "20000", "--memory", "256m", "--pids-limit", "100"))
	add("rdt", none, flags("--l3-cache-schema", "L3:0=f"))
	add("rdt-bandwidth", none, flags("--mem-bw-schema", "MB:0=20"))
	add("json", limits, json(`{"memory": {"limit": 100663296, "reservation": 33554432}, "cpu": {"shares": 700, "quota": 20000, "period": 50000, "cpus": "0"}, "pids": {"limit": 99}}`))
	add("json-over-flags", limits, Update{Args: []string{"--memory", "32m", "-r", "-"}, Stdin: `{"memory": {"limit": 100663296}}`})
	add("json-empty", limits, json(`{}`))
	add("json-bad", limits, json(`{"memory": 5}`))
	add("json-none", limits, json(``))
	add("json-check", limits, json(`{"memory": {"limit": 4096, "checkBeforeUpdate": true}}`))
	add("json-burst", limits, json(`{"cpu": {"quota": 60000, "burst": 10000}}`))
	add("json-pids-zero", limits, json(`{"pids": {"limit": 0}}`))
	add("file-missing", limits, flags("--resources", "nowhere.json"))
	if v2() {
		add("json-unified", limits, json(`{"unified": {"memory.high": "50331648", "memory.swap.max": "0", "cpu.weight": "77"}}`))
		add("json-unified-bad", limits, json(`{"pids": {"limit": 100}, "unified": {"memory.high": "much"}}`))
		add("block-weight", none, flags("--blkio-weight", "500"))
		add("block-throttle", none, json(`{"blockIO": {"throttleReadBpsDevice": [{"major": 253, "minor": 0, "rate": 1048576}]}}`))
	}
	return all
}
