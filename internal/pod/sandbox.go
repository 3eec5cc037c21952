package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var (
	faultSandboxPinned   = fault.New("pod.start.namespaces-pinned")
	faultSandboxAttached = fault.New("pod.start.network-attached")
	faultSandboxVolumes  = fault.New("pod.start.volumes-ready")
	faultSandboxDone     = fault.New("pod.start.sandbox-recorded")
	faultStopContainers  = fault.New("pod.stop.containers-removed")
	faultStopNetwork     = fault.New("pod.stop.network-detached")
	faultStopVolumes     = fault.New("pod.stop.volumes-unpublished")
	faultStopFiles       = fault.New("pod.stop.files-removed")
)

// nsPath is where a pinned namespace of the pod is; "" where the pod has the host's.
func (w *worker) nsPath(kind namespace.Kind) string {
	spec := w.spec()
	if kind == namespace.User && spec.Users == nil {
		return ""
	}
	if kind == namespace.IPC && spec.HostIPC || kind != namespace.IPC && spec.HostNetwork {
		return ""
	}
	return filepath.Join(w.runDir(), "ns", string(kind))
}

// hostname is the pod's, cut to what the kernel takes.
func hostname(spec *Spec) string {
	name := spec.Hostname
	if name == "" {
		name = spec.Name
	}
	return name[:min(len(name), 63)]
}

// ensureSandbox makes what containers of the pod share: namespaces, network, files,
// volumes. Every part is idempotent, so that a start cut off is simply done again.
func (w *worker) ensureSandbox(ctx context.Context, spec *Spec) (err error) {
	w.mu.Lock()
	done := w.st.Sandbox
	w.mu.Unlock()
	if done {
		return nil
	}
	ctx, span := w.span(ctx, "pod sandbox")
	defer span.End(&err)
	if spec.OwnUsers && spec.Users == nil {
		if err := w.takeUsers(); err != nil {
			return fmt.Errorf("make the pod's user namespace: %w", err)
		}
		*spec = w.spec()
	}
	for _, d := range []string{w.runDir(), filepath.Join(w.runDir(), "etc"), filepath.Join(w.runDir(), "volumes"), filepath.Join(w.runDir(), "containers")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var kinds []namespace.Kind
	for _, k := range []namespace.Kind{namespace.Net, namespace.IPC, namespace.UTS} {
		if w.nsPath(k) != "" {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) > 0 {
		sysctls := make(map[string]string)
		for _, s := range spec.Security.Sysctls {
			sysctls[s.Name] = s.Value
		}
		_, pinning := trace.Start(ctx, "pod namespaces")
		err := namespace.Pin(filepath.Join(w.runDir(), "ns"), kinds, namespace.Options{Hostname: hostname(spec), Sysctls: sysctls, Users: spec.Users})
		pinning.End(&err)
		if err != nil {
			return fmt.Errorf("make the pod's namespaces: %w", err)
		}
	}
	faultSandboxPinned.Hit()
	if !spec.HostNetwork {
		ips, err := w.p.o.Network.Attach(ctx, w.id, w.nsPath(namespace.Net), portMappings(spec))
		if err != nil {
			return fmt.Errorf("attach the pod to the network: %w", err)
		}
		if err := w.update(func(st *state) { st.IPs = ips }); err != nil {
			return err
		}
	}
	faultSandboxAttached.Hit()
	if err := w.writeFiles(spec); err != nil {
		return err
	}
	if w.sharesMemory(spec) {
		if err := mountTmpfs(filepath.Join(w.runDir(), "shm"), "mode=1777,size=65536k"+rootOptions(spec), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	for i := range spec.Volumes {
		if _, err := w.prepareVolume(ctx, spec, &spec.Volumes[i]); err != nil {
			return fmt.Errorf("volume %s: %w", spec.Volumes[i].Name, err)
		}
	}
	faultSandboxVolumes.Hit()
	if spec.SharePID && !spec.HostPID {
		if _, err := w.pausePID(ctx); err != nil {
			return err
		}
	}
	err = w.update(func(st *state) { st.Sandbox, st.StartedAt, st.Reason, st.Message = true, time.Now(), "", "" })
	faultSandboxDone.Hit()
	return err
}

// sharesMemory: several containers share one /dev/shm; a single one has its own,
// which costs no mount on the host. How many a client will make in its pod is not known.
func (w *worker) sharesMemory(spec *Spec) bool {
	return !spec.HostIPC && len(spec.Init)+len(spec.Containers) != 1
}

// pausePID starts, or finds, process 1 of the pod's shared PID namespace.
func (w *worker) pausePID(ctx context.Context) (int, error) {
	st, err := w.p.runtime.status(ctx, w.pauseID())
	switch {
	case err == nil && st.Exit != nil:
		if err := w.p.runtime.destroy(ctx, w.pauseID()); err != nil {
			return 0, err
		}
	case err != nil && !isGone(err):
		return 0, err
	case err == nil && st.State == keeper.Running:
		return st.PID, nil
	}
	own := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	if path := w.nsPath(namespace.User); path != "" {
		own = append(own, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	}
	started, err := w.p.runtime.run(ctx, keeper.Spec{
		ID: w.pauseID(), Pause: true, Cgroup: w.group() + "/pause", Rootfs: executor.Rootfs{},
		OCI: &specs.Spec{Version: specs.Version, Linux: &specs.Linux{Namespaces: own}},
	})
	return started.PID, err
}

func portMappings(spec *Spec) (list []PortMapping) {
	add := func(ports []Port) {
		for _, p := range ports {
			if p.HostPort != 0 {
				list = append(list, PortMapping{HostIP: p.HostIP, HostPort: p.HostPort, Port: p.Port, Protocol: p.Protocol})
			}
		}
	}
	for _, l := range [][]Container{spec.Init, spec.Containers} {
		for _, c := range l {
			add(c.Ports)
		}
	}
	add(spec.hostPorts)
	return list
}

// writeFiles writes hosts, resolv.conf and hostname.
func (w *worker) writeFiles(spec *Spec) error {
	etc := filepath.Join(w.runDir(), "etc")
	w.mu.Lock()
	ips := w.st.IPs
	w.mu.Unlock()
	h := HostsFile{Hostname: hostname(spec), Domain: spec.Subdomain, Addresses: ips, Aliases: spec.HostAlias}
	name := []byte(hostname(spec) + "\n")
	if spec.HostNetwork {
		h.Base, _ = os.ReadFile("/etc/hosts")
		if own, err := os.Hostname(); err == nil {
			name = []byte(own + "\n")
		}
	}
	hosts, err := w.p.o.Network.Hosts(h)
	if err != nil {
		return err
	}
	resolv, err := w.p.o.Network.ResolvConf(spec.DNSPolicy, spec.DNS)
	if err != nil {
		return err
	}
	files := map[string][]byte{"hostname": name, "resolv.conf": resolv, "hosts": hosts}
	for name, b := range files {
		// Written in place: containers have the file itself mounted.
		path := filepath.Join(etc, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
		if err := giveToRoot(spec, path); err != nil {
			return err
		}
	}
	return nil
}

func mountTmpfs(dir, data string, flags uintptr) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if ok, err := mount.IsMounted(dir); err != nil || ok {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, data); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}

// teardown takes away everything that the pod has, but not its records and logs.
func (w *worker) teardown(ctx context.Context) error {
	w.stopProbes()
	w.mu.Lock()
	containers := append([]ContainerStatus(nil), w.st.Containers...)
	w.mu.Unlock()
	for _, c := range containers {
		if c.ID != "" {
			if err := w.removeContainer(ctx, c.ID); err != nil {
				return err
			}
		}
	}
	if err := w.releaseSandbox(ctx); err != nil {
		return err
	}
	for _, d := range []string{w.runDir(), w.diskDir()} {
		if err := removeTree(ctx, d); err != nil {
			return err
		}
	}
	faultStopFiles.Hit()
	if w.cgroup == "" { // a client's is the client's to remove
		if g, err := w.p.cgroups.Load(w.group()); err == nil {
			if err := g.Remove(ctx); err != nil {
				return err
			}
		} else if !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return w.update(func(st *state) { st.Sandbox, st.IPs, st.Users = false, nil, nil })
}

// releaseSandbox lets go of what others could use: addresses, ports, volumes, namespaces.
func (w *worker) releaseSandbox(ctx context.Context) error {
	if err := w.p.runtime.destroy(ctx, w.pauseID()); err != nil {
		return err
	}
	faultStopContainers.Hit()
	if err := w.p.o.Network.Detach(ctx, w.id); err != nil {
		return err
	}
	faultStopNetwork.Hit()
	if err := w.p.o.Volumes.UnpublishAll(ctx, w.id); err != nil {
		return err
	}
	faultStopVolumes.Hit()
	return namespace.Unpin(filepath.Join(w.runDir(), "ns"))
}
