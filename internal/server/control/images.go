package control

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"github.com/opencontainers/go-digest"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
)

type images struct{ *server }

// inUse tells whether a container of any pod uses an image, as of the moment of asking.
func (s *server) inUse() func(digest.Digest) bool {
	return func(id digest.Digest) bool { return s.o.Pods.UsedImages()[id.String()] }
}

// users returns the pods that use each image, by its id.
func (s *server) users(ctx context.Context) map[string][]string {
	users := make(map[string][]string)
	list, err := s.o.Pods.List(ctx)
	if err != nil {
		return users
	}
	for _, p := range list {
		for _, c := range p.Containers {
			if name := p.Spec.Key.String(); c.ImageID != "" && !slices.Contains(users[c.ImageID], name) {
				users[c.ImageID] = append(users[c.ImageID], name)
			}
		}
	}
	return users
}

func encodeImage(i *image.Image, users map[string][]string) *orlopv1.Image {
	m := &orlopv1.Image{
		Id: i.ID.String(), Names: i.Names, Digests: i.Digests, Manifest: i.Manifest.String(), SizeBytes: i.SizeBytes,
		UnpackedBytes: i.UnpackedBytes, CreatedAt: stamp(i.Created), Platform: i.Platform, Pinned: i.Pinned, UsedBy: users[i.ID.String()],
	}
	for _, d := range i.Layers {
		m.Layers = append(m.Layers, d.String())
	}
	return m
}

// List implements the service.
func (s images) List(ctx context.Context, _ *connect.Request[orlopv1.ListImagesRequest]) (*connect.Response[orlopv1.ListImagesResponse], error) {
	list, err := s.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	users := s.users(ctx)
	resp := &orlopv1.ListImagesResponse{}
	for i := range list {
		resp.Images = append(resp.Images, encodeImage(&list[i], users))
	}
	return connect.NewResponse(resp), nil
}

// Inspect implements the service.
func (s images) Inspect(ctx context.Context, req *connect.Request[orlopv1.InspectImageRequest]) (*connect.Response[orlopv1.InspectImageResponse], error) {
	i, err := s.o.Images.Resolve(ctx, req.Msg.GetImage())
	if err != nil {
		return nil, err
	}
	m := encodeImage(&i, s.users(ctx))
	if m.Config, err = toStruct(i.Config); err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.InspectImageResponse{Image: m}), nil
}

// relay runs work, whose reports come from any goroutine and must not wait, and sends
// them from this one: a stream takes one sender only. A client that is slow sees the
// latest state of each layer, and the last one always.
func relay(work func(report func(image.Progress)) error, send func(*orlopv1.LayerProgress) error) error {
	var mu sync.Mutex
	latest := make(map[int]image.Progress)
	wake, done := make(chan struct{}, 1), make(chan error, 1)
	flush := func() error {
		mu.Lock()
		now := latest
		latest = make(map[int]image.Progress)
		mu.Unlock()
		for _, i := range slices.Sorted(maps.Keys(now)) {
			p := now[i]
			if err := send(&orlopv1.LayerProgress{
				Layer: p.Layer.String(), Index: int32(p.Index), Count: int32(p.Count), DoneBytes: p.Done, TotalBytes: p.Total, State: string(p.State),
			}); err != nil {
				return err
			}
		}
		return nil
	}
	go func() {
		done <- work(func(p image.Progress) {
			mu.Lock()
			latest[p.Index] = p
			mu.Unlock()
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	}()
	for {
		select {
		case <-wake:
			if err := flush(); err != nil {
				return errors.Join(err, <-done) // the work ends with the request's context
			}
		case err := <-done:
			return errors.Join(err, flush())
		}
	}
}

// Pull implements the service.
func (s images) Pull(ctx context.Context, req *connect.Request[orlopv1.PullImageRequest], out *connect.ServerStream[orlopv1.PullImageResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := image.PullOptions{Platform: req.Msg.GetPlatform()}
	if a := req.Msg.GetAuth(); a != nil {
		o.Auth = &image.Auth{Username: a.GetUsername(), Password: a.GetPassword(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken()}
	}
	var img image.Image
	err := relay(func(report func(image.Progress)) (err error) {
		o.Progress = report
		img, err = s.o.Images.Pull(ctx, req.Msg.GetImage(), o)
		return err
	}, func(p *orlopv1.LayerProgress) error {
		err := out.Send(&orlopv1.PullImageResponse{Message: &orlopv1.PullImageResponse_Progress{Progress: p}})
		if err != nil {
			cancel()
		}
		return err
	})
	if err != nil {
		return err
	}
	return out.Send(&orlopv1.PullImageResponse{Message: &orlopv1.PullImageResponse_Image{Image: encodeImage(&img, nil)}})
}

func removed(r image.Removed) (untagged, ids []string, freed int64) {
	for _, d := range r.Images {
		ids = append(ids, d.String())
	}
	return r.Untagged, ids, r.FreedBytes
}

// Remove implements the service.
func (s images) Remove(ctx context.Context, req *connect.Request[orlopv1.RemoveImageRequest]) (*connect.Response[orlopv1.RemoveImageResponse], error) {
	r, err := s.o.Images.Remove(ctx, req.Msg.GetImage(), s.inUse())
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.RemoveImageResponse{}
	resp.Untagged, resp.Removed, resp.FreedBytes = removed(r)
	return connect.NewResponse(resp), nil
}

// Prune implements the service.
func (s images) Prune(ctx context.Context, req *connect.Request[orlopv1.PruneImagesRequest]) (*connect.Response[orlopv1.PruneImagesResponse], error) {
	r, err := s.o.Images.Prune(ctx, image.PruneOptions{All: req.Msg.GetAll(), InUse: s.inUse()})
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.PruneImagesResponse{}
	resp.Untagged, resp.Removed, resp.FreedBytes = removed(r)
	return connect.NewResponse(resp), nil
}

// Tag implements the service.
func (s images) Tag(ctx context.Context, req *connect.Request[orlopv1.TagImageRequest]) (*connect.Response[orlopv1.TagImageResponse], error) {
	if err := s.o.Images.Tag(ctx, req.Msg.GetImage(), req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.TagImageResponse{}), nil
}

// Pack implements the service.
func (s images) Pack(ctx context.Context, req *connect.Request[orlopv1.PackImageRequest]) (*connect.Response[orlopv1.PackImageResponse], error) {
	m := req.Msg
	if !filepath.IsAbs(m.GetSource()) {
		return nil, errs.New(errs.Invalid, "the source %q must be an absolute path: the daemon reads it", m.GetSource())
	}
	i, err := s.o.Images.Pack(ctx, image.PackOptions{
		Source: m.GetSource(), Ref: m.GetName(), Entrypoint: m.GetEntrypoint(), Cmd: m.GetCommand(), Env: m.GetEnv(), User: m.GetUser(),
		WorkDir: m.GetWorkingDir(), Labels: m.GetLabels(), Ports: m.GetPorts(),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.PackImageResponse{Image: encodeImage(&i, nil)}), nil
}

// Import implements the service.
func (s images) Import(ctx context.Context, stream *connect.BidiStream[orlopv1.ImportImageRequest, orlopv1.ImportImageResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errs.New(errs.Invalid, "the first message of an import must be its start")
	}
	if path := start.GetPath(); path != "" && !filepath.IsAbs(path) {
		return errs.New(errs.Invalid, "the path %q must be absolute: the daemon reads it", path)
	}
	o := image.ImportOptions{Name: start.GetName(), Platform: start.GetPlatform()}
	var list []image.Image
	err = relay(func(report func(image.Progress)) (err error) {
		o.Progress = report
		if start.GetPath() != "" {
			list, err = s.o.Images.ImportPath(ctx, start.GetPath(), o)
			return err
		}
		list, err = s.o.Images.Import(ctx, &receiver{next: func() ([]byte, error) {
			m, err := stream.Receive()
			if err != nil {
				return nil, err
			}
			return m.GetData(), nil
		}}, o)
		return err
	}, func(p *orlopv1.LayerProgress) error {
		return stream.Send(&orlopv1.ImportImageResponse{Message: &orlopv1.ImportImageResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	done := &orlopv1.ImportedImages{}
	for i := range list {
		done.Images = append(done.Images, encodeImage(&list[i], nil))
	}
	return stream.Send(&orlopv1.ImportImageResponse{Message: &orlopv1.ImportImageResponse_Images{Images: done}})
}

// Export implements the service.
func (s images) Export(ctx context.Context, req *connect.Request[orlopv1.ExportImageRequest], out *connect.ServerStream[orlopv1.ExportImageResponse]) error {
	f := image.Format(req.Msg.GetFormat())
	if f == "" {
		f = image.OCIArchive
	}
	switch f {
	case image.OCIArchive, image.DockerArchive:
	case image.OCILayout:
		if !filepath.IsAbs(req.Msg.GetPath()) {
			return errs.New(errs.Invalid, "an oci-layout is a directory, which the daemon writes: its path %q must be absolute", req.Msg.GetPath())
		}
		return s.o.Images.ExportDir(ctx, req.Msg.GetImages(), req.Msg.GetPath())
	default:
		return errs.New(errs.Invalid, "the format %q is none of oci-archive, docker-archive, oci-layout", f)
	}
	w := bufio.NewWriterSize(pieces(func(b []byte) error {
		return out.Send(&orlopv1.ExportImageResponse{Data: b})
	}), piece)
	if err := s.o.Images.Export(ctx, req.Msg.GetImages(), w, f); err != nil {
		return err
	}
	return w.Flush()
}
