package cri

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/pod"
)

// usage is what the files of a directory take.
type usage struct {
	at            time.Time
	bytes, inodes int64
}

func (u usage) encode(dir string) *v1.FilesystemUsage {
	return &v1.FilesystemUsage{
		Timestamp: u.at.UnixNano(), FsId: &v1.FilesystemIdentifier{Mountpoint: dir},
		UsedBytes: number(uint64(u.bytes)), InodesUsed: number(uint64(u.inodes)),
	}
}

// usageCache keeps measures of directories: walking them is dear, and kubelet asks often.
type usageCache struct {
	mu sync.Mutex
	of map[string]usage
}

// usageFresh is how old a measure may be.
const usageFresh = 10 * time.Second

func (c *usageCache) measure(dir string, fn func() (bytes, inodes int64, err error)) (usage, error) {
	c.mu.Lock()
	u, ok := c.of[dir]
	c.mu.Unlock()
	if ok && time.Since(u.at) < usageFresh {
		return u, nil
	}
	bytes, inodes, err := fn()
	if err != nil {
		return usage{}, err
	}
	u = usage{time.Now(), bytes, inodes}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[string]usage)
	}
	for d, old := range c.of { // of containers that are gone
		if time.Since(old.at) > 10*usageFresh {
			delete(c.of, d)
		}
	}
	c.of[dir] = u
	return u, nil
}

// tree measures a directory tree whose files come and go.
func tree(ctx context.Context, dir string) (bytes, inodes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if fi, err := d.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				bytes += st.Blocks * 512
			}
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}

// cpuRates remembers CPU time, to tell how much was used since the last question.
type cpuRates struct {
	mu   sync.Mutex
	last map[string]cpuMark
}

type cpuMark struct {
	at    time.Time
	usage time.Duration
	rate  uint64 // nanoseconds a second
}

func (c *cpuRates) rate(id string, at time.Time, used time.Duration) *v1.UInt64Value {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last = make(map[string]cpuMark)
	}
	for k, m := range c.last {
		if at.Sub(m.at) > 10*time.Minute {
			delete(c.last, k)
		}
	}
	m, ok := c.last[id]
	if !ok || used < m.usage {
		c.last[id] = cpuMark{at: at, usage: used}
		return nil
	}
	if between := at.Sub(m.at); between >= time.Second || m.rate == 0 && between > 0 {
		m = cpuMark{at: at, usage: used, rate: uint64(float64(used-m.usage) / between.Seconds())}
		c.last[id] = m
	}
	return number(m.rate)
}

func number(n uint64) *v1.UInt64Value { return &v1.UInt64Value{Value: n} }

// ContainerStats implements the service.
func (s *Server) ContainerStats(ctx context.Context, r *v1.ContainerStatsRequest) (*v1.ContainerStatsResponse, error) {
	c, err := s.o.Pods.Container(pod.ContainerID(r.ContainerId))
	if err != nil {
		return nil, err
	}
	st, err := s.containerStats(ctx, &c)
	return &v1.ContainerStatsResponse{Stats: st}, err
}

// ListContainerStats implements the service.
func (s *Server) ListContainerStats(ctx context.Context, r *v1.ListContainerStatsRequest) (*v1.ListContainerStatsResponse, error) {
	list, err := s.listContainerStats(ctx, r.Filter)
	return &v1.ListContainerStatsResponse{Stats: list}, err
}

// StreamContainerStats implements the service.
func (s *Server) StreamContainerStats(r *v1.StreamContainerStatsRequest, stream v1.RuntimeService_StreamContainerStatsServer) error {
	list, err := s.listContainerStats(stream.Context(), r.Filter)
	if err != nil {
		return err
	}
	return pieces(list, func(l []*v1.ContainerStats) error {
		return stream.Send(&v1.StreamContainerStatsResponse{ContainerStats: l})
	})
}

func (s *Server) listContainerStats(ctx context.Context, f *v1.ContainerStatsFilter) ([]*v1.ContainerStats, error) {
	var list []*v1.ContainerStats
	for _, c := range s.containers(&v1.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}) {
		if c.State != pod.DrivenRunning {
			continue
		}
		st, err := s.containerStats(ctx, &c)
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.FailedPrecondition) {
			continue // it has just ended
		}
		if err != nil {
			return nil, err
		}
		list = append(list, st)
	}
	return list, nil
}

func (s *Server) containerStats(ctx context.Context, c *pod.DrivenContainer) (*v1.ContainerStats, error) {
	st := &v1.ContainerStats{Attributes: &v1.ContainerAttributes{
		Id: string(c.ID), Metadata: containerMetadata(&c.Config), Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}}
	if c.State == pod.DrivenRunning {
		u, err := s.o.Pods.ContainerUsage(c.ID)
		if err != nil {
			return nil, err
		}
		st.Cpu, st.Memory, st.Swap, st.Io = s.encodeCPU(string(c.ID), u), encodeMemory(u), encodeSwap(u), encodeIO(u)
	}
	layer, err := s.layer(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	st.WritableLayer = layer.encode(s.o.ContainerDir)
	return st, nil
}

// layer measures a container's writable layer.
func (s *Server) layer(ctx context.Context, id pod.ContainerID) (usage, error) {
	dir := filepath.Join(s.o.ContainerDir, string(id), "upper")
	return s.layers.measure(dir, func() (int64, int64, error) { return tree(ctx, dir) })
}

func (s *Server) encodeCPU(id string, u cgroup.Stats) *v1.CpuUsage {
	out := &v1.CpuUsage{Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: number(uint64(u.CPU.Usage)), UsageNanoCores: s.cpu.rate(id, u.At, u.CPU.Usage)}
	if u.Pressure != nil {
		out.Psi = encodePSI(u.Pressure.CPU)
	}
	return out
}

func encodeMemory(u cgroup.Stats) *v1.MemoryUsage {
	m := &u.Memory
	out := &v1.MemoryUsage{
		Timestamp: u.At.UnixNano(), WorkingSetBytes: number(m.WorkingSetBytes), UsageBytes: number(m.UsageBytes), RssBytes: number(m.RSSBytes),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorPageFaults),
	}
	if m.LimitBytes > 0 {
		out.AvailableBytes = number(m.LimitBytes - min(m.LimitBytes, m.WorkingSetBytes))
	}
	if u.Pressure != nil {
		out.Psi = encodePSI(u.Pressure.Memory)
	}
	return out
}

func encodeSwap(u cgroup.Stats) *v1.SwapUsage {
	return &v1.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: number(u.Memory.SwapBytes)}
}

func encodeIO(u cgroup.Stats) *v1.IoUsage {
	out := &v1.IoUsage{Timestamp: u.At.UnixNano()}
	if u.Pressure != nil {
		out.Psi = encodePSI(u.Pressure.IO)
	}
	return out
}

func encodePSI(p cgroup.PSI) *v1.PsiStats {
	line := func(l cgroup.PSILine) *v1.PsiData {
		return &v1.PsiData{Total: uint64(l.Total.Microseconds()), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &v1.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// PodSandboxStats implements the service.
func (s *Server) PodSandboxStats(ctx context.Context, r *v1.PodSandboxStatsRequest) (*v1.PodSandboxStatsResponse, error) {
	b, err := s.o.Pods.Sandbox(pod.ID(r.PodSandboxId))
	if err != nil {
		return nil, err
	}
	st, err := s.sandboxStats(ctx, &b)
	return &v1.PodSandboxStatsResponse{Stats: st}, err
}

// ListPodSandboxStats implements the service.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *v1.ListPodSandboxStatsRequest) (*v1.ListPodSandboxStatsResponse, error) {
	list, err := s.listSandboxStats(ctx, r.Filter)
	return &v1.ListPodSandboxStatsResponse{Stats: list}, err
}

// StreamPodSandboxStats implements the service.
func (s *Server) StreamPodSandboxStats(r *v1.StreamPodSandboxStatsRequest, stream v1.RuntimeService_StreamPodSandboxStatsServer) error {
	list, err := s.listSandboxStats(stream.Context(), r.Filter)
	if err != nil {
		return err
	}
	return pieces(list, func(l []*v1.PodSandboxStats) error {
		return stream.Send(&v1.StreamPodSandboxStatsResponse{PodSandboxStats: l})
	})
}

func (s *Server) listSandboxStats(ctx context.Context, f *v1.PodSandboxStatsFilter) ([]*v1.PodSandboxStats, error) {
	var list []*v1.PodSandboxStats
	for _, b := range s.o.Pods.Sandboxes() {
		if b.State != pod.SandboxReady || !named(string(b.ID), f.GetId()) || !labelled(b.Config.Labels, f.GetLabelSelector()) {
			continue
		}
		st, err := s.sandboxStats(ctx, &b)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, st)
	}
	return list, nil
}

func (s *Server) sandboxStats(ctx context.Context, b *pod.Sandbox) (*v1.PodSandboxStats, error) {
	st := &v1.PodSandboxStats{
		Attributes: &v1.PodSandboxAttributes{Id: string(b.ID), Metadata: sandboxMetadata(&b.Config), Labels: b.Config.Labels, Annotations: b.Config.Annotations},
		Linux:      &v1.LinuxPodSandboxStats{},
	}
	u, err := s.o.Pods.SandboxUsage(b.ID)
	switch {
	case err == nil:
		st.Linux.Cpu, st.Linux.Memory, st.Linux.Io = s.encodeCPU(string(b.ID), u), encodeMemory(u), encodeIO(u)
		st.Linux.Process = &v1.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: number(u.PIDs.Current)}
	case errors.Is(err, errs.NotFound): // a pod without a container has no group of ours yet
		now := cgroup.Stats{At: time.Now()}
		st.Linux.Cpu, st.Linux.Memory = s.encodeCPU(string(b.ID), now), encodeMemory(now)
	default:
		return nil, err
	}
	if !b.Config.HostNetwork {
		n, err := s.o.Pods.SandboxNetwork(b.ID)
		if err != nil {
			return nil, err
		}
		st.Linux.Network = &v1.NetworkUsage{Timestamp: n.At.UnixNano(), DefaultInterface: &v1.NetworkInterfaceUsage{
			Name: n.Interface, RxBytes: number(n.ReceiveBytes), TxBytes: number(n.TransmitBytes),
		}}
	}
	st.Linux.Containers, err = s.listContainerStats(ctx, &v1.ContainerStatsFilter{PodSandboxId: string(b.ID)})
	return st, err
}
