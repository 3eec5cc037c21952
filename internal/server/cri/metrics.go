package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/pod"
)

// Metrics of pods and containers have the names and labels that kubelet shows of cAdvisor,
// so that dashboards and alerts go on working where kubelet asks the runtime instead.

// ofContainer are the labels that every metric begins with.
var ofContainer = []string{"container", "id", "image", "name", "namespace", "pod"}

// metric is one that is listed: its name, what it says, and its labels beside ofContainer.
type metric struct {
	name, help string
	gauge      bool
	labels     []string
}

const (
	counts = false
	tells  = true
)

// metrics are all, in the order of their names. What a kernel does not count has no values.
var metrics = []metric{
	{"container_blkio_device_usage_total", "Bytes that went to and from a block device.", counts, []string{"device", "major", "minor", "operation"}},
	{"container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.", counts, nil},
	{"container_cpu_cfs_throttled_periods_total", "Periods of the CPU quota in which the container was held back.", counts, nil},
	{"container_cpu_cfs_throttled_seconds_total", "Seconds for which the container was held back.", counts, nil},
	{"container_cpu_system_seconds_total", "Seconds of CPU time in the kernel.", counts, nil},
	{"container_cpu_usage_seconds_total", "Seconds of CPU time.", counts, []string{"cpu"}},
	{"container_cpu_user_seconds_total", "Seconds of CPU time in user space.", counts, nil},
	{"container_file_descriptors", "Open file descriptors.", tells, nil},
	{"container_fs_inodes_free", "Free inodes of the filesystem of the writable layer.", tells, []string{"device"}},
	{"container_fs_inodes_total", "Inodes of the filesystem of the writable layer.", tells, []string{"device"}},
	{"container_fs_limit_bytes", "Size of the filesystem of the writable layer.", tells, []string{"device"}},
	{"container_fs_reads_bytes_total", "Bytes read from a block device.", counts, []string{"device"}},
	{"container_fs_reads_total", "Reads from a block device.", counts, []string{"device"}},
	{"container_fs_usage_bytes", "Bytes of the writable layer.", tells, []string{"device"}},
	{"container_fs_writes_bytes_total", "Bytes written to a block device.", counts, []string{"device"}},
	{"container_fs_writes_total", "Writes to a block device.", counts, []string{"device"}},
	{"container_hugetlb_max_usage_bytes", "The most bytes in huge pages of a size, where the kernel counts it.", tells, []string{"pagesize"}},
	{"container_hugetlb_usage_bytes", "Bytes in huge pages of a size.", tells, []string{"pagesize"}},
	{"container_last_seen", "When the container was last seen, in seconds of Unix time.", tells, nil},
	{"container_memory_cache", "Bytes of file pages.", tells, nil},
	{"container_memory_failcnt", "How often memory was at its limit.", counts, nil},
	{"container_memory_failures_total", "Page faults.", counts, []string{"failure_type", "scope"}},
	{"container_memory_kernel_usage", "Bytes of the kernel for the container.", tells, nil},
	{"container_memory_mapped_file", "Bytes of files that are mapped.", tells, nil},
	{"container_memory_max_usage_bytes", "The most memory that was used.", tells, nil},
	{"container_memory_rss", "Bytes of anonymous memory.", tells, nil},
	{"container_memory_swap", "Bytes in swap.", tells, nil},
	{"container_memory_usage_bytes", "Bytes of memory, file pages included.", tells, nil},
	{"container_memory_working_set_bytes", "Bytes of memory without the file pages that would be given back first.", tells, nil},
	{"container_network_receive_bytes_total", "Bytes received.", counts, []string{"interface"}},
	{"container_network_receive_errors_total", "Errors at receiving.", counts, []string{"interface"}},
	{"container_network_receive_packets_dropped_total", "Packets that were dropped at receiving.", counts, []string{"interface"}},
	{"container_network_receive_packets_total", "Packets received.", counts, []string{"interface"}},
	{"container_network_transmit_bytes_total", "Bytes sent.", counts, []string{"interface"}},
	{"container_network_transmit_errors_total", "Errors at sending.", counts, []string{"interface"}},
	{"container_network_transmit_packets_dropped_total", "Packets that were dropped at sending.", counts, []string{"interface"}},
	{"container_network_transmit_packets_total", "Packets sent.", counts, []string{"interface"}},
	{"container_oom_events_total", "Processes that the out-of-memory killer has killed.", counts, nil},
	{"container_pressure_cpu_stalled_seconds_total", "Seconds for which all tasks waited for a CPU.", counts, nil},
	{"container_pressure_cpu_waiting_seconds_total", "Seconds for which some task waited for a CPU.", counts, nil},
	{"container_pressure_io_stalled_seconds_total", "Seconds for which all tasks waited for a disk.", counts, nil},
	{"container_pressure_io_waiting_seconds_total", "Seconds for which some task waited for a disk.", counts, nil},
	{"container_pressure_memory_stalled_seconds_total", "Seconds for which all tasks waited for memory.", counts, nil},
	{"container_pressure_memory_waiting_seconds_total", "Seconds for which some task waited for memory.", counts, nil},
	{"container_processes", "Processes.", tells, nil},
	{"container_sockets", "Open sockets.", tells, nil},
	{"container_spec_cpu_period", "Period of the CPU quota in microseconds.", tells, nil},
	{"container_spec_cpu_quota", "CPU quota in microseconds a period.", tells, nil},
	{"container_spec_cpu_shares", "Share of the CPU.", tells, nil},
	{"container_spec_memory_limit_bytes", "Limit of memory; 0: none.", tells, nil},
	{"container_spec_memory_reservation_limit_bytes", "Memory that is kept under pressure; 0: none.", tells, nil},
	{"container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0: none.", tells, nil},
	{"container_start_time_seconds", "When the container started, in seconds of Unix time.", tells, nil},
	{"container_threads", "Threads.", tells, nil},
	{"container_threads_max", "Limit of threads; 0: none.", tells, nil},
	{"container_ulimits_soft", "Soft resource limits of the container's first process.", tells, []string{"ulimit"}},
}

// ListMetricDescriptors implements the service.
func (s *Server) ListMetricDescriptors(context.Context, *v1.ListMetricDescriptorsRequest) (*v1.ListMetricDescriptorsResponse, error) {
	answer := &v1.ListMetricDescriptorsResponse{}
	for _, m := range metrics {
		answer.Descriptors = append(answer.Descriptors, &v1.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(ofContainer, m.labels)})
	}
	return answer, nil
}

// samples collects the values of one pod or container.
type samples struct {
	at     int64
	labels []string
	list   []*v1.Metric
}

// add takes a value, with the labels that the metric has beside ofContainer.
func (s *samples) add(name string, value uint64, labels ...string) {
	i, ok := slices.BinarySearchFunc(metrics, name, func(m metric, name string) int { return strings.Compare(m.name, name) })
	if !ok || len(labels) != len(metrics[i].labels) {
		panic(fmt.Sprintf("metric %s with labels %v is not in the list", name, labels))
	}
	kind := v1.MetricType_COUNTER
	if metrics[i].gauge {
		kind = v1.MetricType_GAUGE
	}
	s.list = append(s.list, &v1.Metric{
		Name: name, Timestamp: s.at, MetricType: kind, LabelValues: slices.Concat(s.labels, labels), Value: number(value),
	})
}

// ListPodSandboxMetrics implements the service.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *v1.ListPodSandboxMetricsRequest) (*v1.ListPodSandboxMetricsResponse, error) {
	list, err := s.podMetrics(ctx)
	return &v1.ListPodSandboxMetricsResponse{PodMetrics: list}, err
}

// StreamPodSandboxMetrics implements the service.
func (s *Server) StreamPodSandboxMetrics(_ *v1.StreamPodSandboxMetricsRequest, stream v1.RuntimeService_StreamPodSandboxMetricsServer) error {
	list, err := s.podMetrics(stream.Context())
	if err != nil {
		return err
	}
	return pieces(list, func(l []*v1.PodSandboxMetrics) error {
		return stream.Send(&v1.StreamPodSandboxMetricsResponse{PodSandboxMetrics: l})
	})
}

func (s *Server) podMetrics(ctx context.Context) (list []*v1.PodSandboxMetrics, err error) {
	gone := func(err error) bool { return errors.Is(err, errs.NotFound) || errors.Is(err, errs.FailedPrecondition) }
	for _, b := range s.o.Pods.Sandboxes() {
		if b.State != pod.SandboxReady {
			continue
		}
		m := &v1.PodSandboxMetrics{PodSandboxId: string(b.ID)}
		if m.Metrics, err = s.sandboxMetrics(&b); gone(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, c := range s.o.Pods.Containers(b.ID) {
			if c.State != pod.DrivenRunning {
				continue
			}
			of, err := s.containerMetrics(ctx, &b, &c)
			if gone(err) {
				continue // it has just ended
			}
			if err != nil {
				return nil, err
			}
			m.ContainerMetrics = append(m.ContainerMetrics, &v1.ContainerMetrics{ContainerId: string(c.ID), Metrics: of})
		}
		list = append(list, m)
	}
	return list, nil
}

func (s *Server) sandboxMetrics(b *pod.Sandbox) ([]*v1.Metric, error) {
	now := time.Now()
	to := samples{at: now.UnixNano(), labels: []string{"", s.o.Pods.SandboxGroup(b.ID), "", "", b.Config.Namespace, b.Config.Name}}
	u, err := s.o.Pods.SandboxUsage(b.ID)
	if err == nil {
		to.usage(u)
	} else if !errors.Is(err, errs.NotFound) { // a pod without a container has no group of ours yet
		return nil, err
	}
	to.add("container_last_seen", uint64(now.Unix()))
	to.add("container_start_time_seconds", uint64(b.CreatedAt.Unix()))
	if b.Config.HostNetwork {
		return to.list, nil
	}
	n, err := s.o.Pods.SandboxNetwork(b.ID)
	if err != nil {
		return nil, err
	}
	for name, v := range map[string]uint64{
		"receive_bytes": n.ReceiveBytes, "receive_errors": n.ReceiveErrors, "receive_packets_dropped": n.ReceiveDrops, "receive_packets": n.ReceivePackets,
		"transmit_bytes": n.TransmitBytes, "transmit_errors": n.TransmitErrors, "transmit_packets_dropped": n.TransmitDrops, "transmit_packets": n.TransmitPackets,
	} {
		to.add("container_network_"+name+"_total", v, n.Interface)
	}
	return to.list, nil
}

func (s *Server) containerMetrics(ctx context.Context, b *pod.Sandbox, c *pod.DrivenContainer) ([]*v1.Metric, error) {
	u, err := s.o.Pods.ContainerUsage(c.ID)
	if err != nil {
		return nil, err
	}
	p, err := s.o.Pods.ContainerProcesses(c.ID)
	if err != nil {
		return nil, err
	}
	to := samples{at: u.At.UnixNano(), labels: []string{c.Config.Name, p.Group, c.Config.Image, string(c.ID), b.Config.Namespace, b.Config.Name}}
	to.usage(u)
	to.add("container_last_seen", uint64(u.At.Unix()))
	to.add("container_start_time_seconds", uint64(c.StartedAt.Unix()))
	to.add("container_processes", p.Processes)
	to.add("container_threads", p.Threads)
	to.add("container_threads_max", u.PIDs.Limit)
	to.add("container_file_descriptors", p.Descriptors)
	to.add("container_sockets", p.Sockets)
	to.add("container_ulimits_soft", p.MaxDescriptors, "max_open_files")
	to.add("container_oom_events_total", p.OOMKills)
	to.limits(encodeLimits(c.Config.Limits, c.Config.OOMScoreAdj))
	err = s.filesystemMetrics(ctx, &to, c)
	return to.list, err
}

// usage adds what a control group counts.
func (s *samples) usage(u cgroup.Stats) {
	s.add("container_cpu_usage_seconds_total", seconds(u.CPU.Usage), "total")
	s.add("container_cpu_user_seconds_total", seconds(u.CPU.User))
	s.add("container_cpu_system_seconds_total", seconds(u.CPU.System))
	s.add("container_cpu_cfs_periods_total", u.CPU.Periods)
	s.add("container_cpu_cfs_throttled_periods_total", u.CPU.ThrottledPeriods)
	s.add("container_cpu_cfs_throttled_seconds_total", seconds(u.CPU.Throttled))
	m := &u.Memory
	s.add("container_memory_cache", m.CacheBytes)
	s.add("container_memory_failcnt", m.LimitHits)
	s.add("container_memory_failures_total", m.PageFaults, "pgfault", "hierarchy")
	s.add("container_memory_failures_total", m.MajorPageFaults, "pgmajfault", "hierarchy")
	s.add("container_memory_kernel_usage", m.KernelBytes)
	s.add("container_memory_mapped_file", m.MappedBytes)
	s.add("container_memory_max_usage_bytes", m.PeakBytes)
	s.add("container_memory_rss", m.RSSBytes)
	s.add("container_memory_swap", m.SwapBytes)
	s.add("container_memory_usage_bytes", m.UsageBytes)
	s.add("container_memory_working_set_bytes", m.WorkingSetBytes)
	for _, d := range u.IO {
		name := deviceName(d.Major, d.Minor)
		major, minor := strconv.Itoa(int(d.Major)), strconv.Itoa(int(d.Minor))
		s.add("container_blkio_device_usage_total", d.ReadBytes, name, major, minor, "Read")
		s.add("container_blkio_device_usage_total", d.WriteBytes, name, major, minor, "Write")
		s.add("container_fs_reads_bytes_total", d.ReadBytes, name)
		s.add("container_fs_reads_total", d.ReadOps, name)
		s.add("container_fs_writes_bytes_total", d.WriteBytes, name)
		s.add("container_fs_writes_total", d.WriteOps, name)
	}
	for size, h := range u.HugeTLB {
		s.add("container_hugetlb_usage_bytes", h.UsageBytes, size)
		s.add("container_hugetlb_max_usage_bytes", h.PeakBytes, size)
	}
	if p := u.Pressure; p != nil {
		for name, of := range map[string]cgroup.PSI{"cpu": p.CPU, "memory": p.Memory, "io": p.IO} {
			s.add("container_pressure_"+name+"_waiting_seconds_total", seconds(of.Some.Total))
			s.add("container_pressure_"+name+"_stalled_seconds_total", seconds(of.Full.Total))
		}
	}
}

// seconds rounds down: the protocol's values are whole numbers.
func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }

func (s *samples) limits(l *v1.LinuxContainerResources) {
	s.add("container_spec_cpu_period", uint64(max(0, l.GetCpuPeriod())))
	s.add("container_spec_cpu_shares", uint64(max(0, l.GetCpuShares())))
	if l.GetCpuQuota() > 0 {
		s.add("container_spec_cpu_quota", uint64(l.CpuQuota))
	}
	s.add("container_spec_memory_limit_bytes", uint64(max(0, l.GetMemoryLimitInBytes())))
	s.add("container_spec_memory_swap_limit_bytes", uint64(max(0, l.GetMemorySwapLimitInBytes())))
	low, _ := strconv.ParseUint(l.GetUnified()["memory.low"], 10, 64)
	s.add("container_spec_memory_reservation_limit_bytes", low)
}

func (s *Server) filesystemMetrics(ctx context.Context, to *samples, c *pod.DrivenContainer) error {
	layer, err := s.layer(ctx, c.ID)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	for _, call := range []func() error{
		func() error { return unix.Statfs(s.o.ContainerDir, &fs) }, func() error { return unix.Stat(s.o.ContainerDir, &st) },
	} {
		if err := call(); err != nil {
			return fmt.Errorf("look at %s: %w", s.o.ContainerDir, err)
		}
	}
	device := deviceName(unix.Major(st.Dev), unix.Minor(st.Dev))
	to.add("container_fs_usage_bytes", uint64(layer.bytes), device)
	to.add("container_fs_limit_bytes", fs.Blocks*uint64(fs.Bsize), device)
	to.add("container_fs_inodes_total", fs.Files, device)
	to.add("container_fs_inodes_free", fs.Ffree, device)
	return nil
}

// deviceName is the path of a block device, or its number where sysfs has no name.
func deviceName(major, minor uint32) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	to, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(to)
}
