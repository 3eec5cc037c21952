package control

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/pod"
)

type system struct{ *server }

// Version implements the service.
func (s system) Version(context.Context, *connect.Request[orlopv1.VersionRequest]) (*connect.Response[orlopv1.VersionResponse], error) {
	return connect.NewResponse(&orlopv1.VersionResponse{Version: s.o.Facts.Version, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}), nil
}

// Info implements the service. It answers before the daemon is ready, and says so.
func (s system) Info(ctx context.Context, _ *connect.Request[orlopv1.InfoRequest]) (*connect.Response[orlopv1.InfoResponse], error) {
	f := s.o.Facts
	m := &orlopv1.InfoResponse{
		Version: f.Version, Instance: f.Instance, Root: f.Root, Run: f.Run, StartedAt: stamp(f.StartedAt), Ready: true, Pid: int32(os.Getpid()),
		Architecture: runtime.GOARCH, Cpus: int32(runtime.NumCPU()), Cgroup: f.Cgroup, Addresses: f.Addresses, Warnings: f.Warnings,
		OperatingSystem: osName(),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryBytes = int64(si.Totalram) * int64(si.Unit)
	}
	if s.o.Ready != nil {
		select {
		case <-s.o.Ready:
		default:
			m.Ready, m.NotReady = false, "the daemon is taking stock of what runs"
			return connect.NewResponse(m), nil
		}
	}
	pods, err := s.o.Pods.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		m.Pods++
		if p.Phase == pod.Running {
			m.PodsRunning++
		}
		for _, c := range p.Containers {
			if c.State == pod.RunningNow {
				m.ContainersRunning++
			}
		}
	}
	images, err := s.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	claims, err := s.o.Volumes.Claims(ctx)
	if err != nil {
		return nil, err
	}
	m.Images, m.Volumes = int32(len(images)), int32(len(claims))
	if s.o.Keeper != nil {
		if m.Keeper, err = s.o.Keeper(ctx); err != nil {
			m.Keeper = err.Error()
		}
	}
	return connect.NewResponse(m), nil
}

// osName is the distribution's name by os-release(5).
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// DiskUsage implements the service.
func (s system) DiskUsage(ctx context.Context, _ *connect.Request[orlopv1.DiskUsageRequest]) (*connect.Response[orlopv1.DiskUsageResponse], error) {
	images, err := s.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	used := s.inUse()
	im := &orlopv1.DiskUsageResponse_Item{What: "images", Count: int32(len(images))}
	for _, i := range images {
		if used(i.ID) {
			im.Active++
		} else if !i.Pinned {
			im.ReclaimableBytes += i.SizeBytes + i.UnpackedBytes
		}
	}
	if im.SizeBytes, _, err = s.o.Images.Usage(ctx); err != nil {
		return nil, err
	}
	im.ReclaimableBytes = min(im.ReclaimableBytes, im.SizeBytes)
	vs, err := s.o.Volumes.Stats(ctx)
	if err != nil {
		return nil, err
	}
	vol := &orlopv1.DiskUsageResponse_Item{What: "volumes", Count: int32(vs.Claims), Active: int32(vs.Published), SizeBytes: vs.UsedBytes, CapacityBytes: vs.CapacityBytes}
	items := []*orlopv1.DiskUsageResponse_Item{im, vol}
	scratch, err := s.o.Volumes.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	if len(scratch) > 0 { // it lies in the same pool
		item := &orlopv1.DiskUsageResponse_Item{What: "scratch space", Count: int32(len(scratch)), Active: int32(len(scratch))}
		for _, c := range scratch {
			item.SizeBytes += c.UsedBytes
		}
		vol.SizeBytes = max(0, vol.SizeBytes-item.SizeBytes)
		items = append(items, item)
	}
	for _, d := range []struct{ what, dir string }{{"containers", s.o.Facts.Containers}, {"logs", s.o.Facts.Logs}} {
		if d.dir == "" {
			continue
		}
		item := &orlopv1.DiskUsageResponse_Item{What: d.what}
		if ents, err := os.ReadDir(d.dir); err == nil {
			item.Count, item.Active = int32(len(ents)), int32(len(ents))
		}
		if item.SizeBytes, err = treeSize(ctx, d.dir); err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return connect.NewResponse(&orlopv1.DiskUsageResponse{Items: items}), nil
}

// treeSize is the disk space of what is below dir, each file once. What is removed
// meanwhile, and filesystems mounted there, do not count.
func treeSize(ctx context.Context, dir string) (n int64, err error) {
	var dev uint64
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if path == dir {
			dev = st.Dev
		}
		if st.Dev != dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		n += st.Blocks * 512
		return nil
	})
	return n, err
}

// Prune implements the service.
func (s system) Prune(ctx context.Context, req *connect.Request[orlopv1.PruneRequest]) (*connect.Response[orlopv1.PruneResponse], error) {
	resp := &orlopv1.PruneResponse{}
	if req.Msg.GetPods() {
		pods, err := s.o.Pods.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			if p.Phase == pod.Succeeded || p.Phase == pod.Failed {
				if err := s.o.Pods.Delete(ctx, p.Spec.Key, pod.DeleteOptions{Wait: true}); err != nil && errs.KindOf(err) != errs.NotFound {
					return nil, err
				}
				resp.Removed = append(resp.Removed, "pod "+p.Spec.Key.String())
			}
		}
	}
	if req.Msg.GetImages() || req.Msg.GetAllImages() {
		r, err := s.o.Images.Prune(ctx, image.PruneOptions{All: req.Msg.GetAllImages(), InUse: s.inUse()})
		if err != nil {
			return nil, err
		}
		for _, d := range r.Images {
			resp.Removed = append(resp.Removed, "image "+d.String())
		}
		resp.FreedBytes += r.FreedBytes
	}
	if req.Msg.GetVolumes() {
		// What the trim reports is what the filesystems looked upon as free; what came of
		// it shows in the pool.
		before, err := s.o.Volumes.Stats(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := s.o.Volumes.Trim(ctx); err != nil {
			return nil, fmt.Errorf("give blocks of volumes back: %w", err)
		}
		after, err := s.o.Volumes.Stats(ctx)
		if err != nil {
			return nil, err
		}
		resp.FreedBytes += max(0, before.UsedBytes-after.UsedBytes)
	}
	return connect.NewResponse(resp), nil
}

// UpgradeKeeper implements the service.
func (s system) UpgradeKeeper(ctx context.Context, req *connect.Request[orlopv1.UpgradeKeeperRequest]) (*connect.Response[orlopv1.UpgradeKeeperResponse], error) {
	if s.o.UpgradeKeeper == nil {
		return nil, errs.New(errs.Unsupported, "this daemon cannot upgrade its keeper")
	}
	v, err := s.o.UpgradeKeeper(ctx, req.Msg.GetPath())
	return connect.NewResponse(&orlopv1.UpgradeKeeperResponse{Version: v}), err
}
