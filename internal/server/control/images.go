package control

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/opencontainers/go-digest"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
)

type images struct{ *server }

// inUse tells whether a container of any pod uses an image.
func (s *server) inUse() func(digest.Digest) bool {
	used := s.o.Pods.UsedImages()
	return func(id digest.Digest) bool { return used[id.String()] }
}

func (s *server) encodeImage(ctx context.Context, i *image.Image, config bool) (*orlopv1.Image, error) {
	m := &orlopv1.Image{
		Id: i.ID.String(), Names: i.Names, Digests: i.Digests, Manifest: i.Manifest.String(), SizeBytes: i.SizeBytes,
		UnpackedBytes: i.UnpackedBytes, CreatedAt: stamp(i.Created), Platform: i.Platform, Pinned: i.Pinned,
	}
	for _, d := range i.Layers {
		m.Layers = append(m.Layers, d.String())
	}
	pods, err := s.o.Pods.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		for _, c := range p.Containers {
			if c.ImageID == m.Id {
				m.UsedBy = append(m.UsedBy, p.Spec.Key.String())
				break
			}
		}
	}
	if config {
		m.Config, err = toStruct(i.Config)
	}
	return m, err
}

// List implements the service.
func (s images) List(ctx context.Context, _ *connect.Request[orlopv1.ListImagesRequest]) (*connect.Response[orlopv1.ListImagesResponse], error) {
	list, err := s.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.ListImagesResponse{}
	for i := range list {
		m, err := s.encodeImage(ctx, &list[i], false)
		if err != nil {
			return nil, err
		}
		resp.Images = append(resp.Images, m)
	}
	return connect.NewResponse(resp), nil
}

// Inspect implements the service.
func (s images) Inspect(ctx context.Context, req *connect.Request[orlopv1.InspectImageRequest]) (*connect.Response[orlopv1.InspectImageResponse], error) {
	i, err := s.o.Images.Resolve(ctx, req.Msg.GetImage())
	if err != nil {
		return nil, err
	}
	m, err := s.encodeImage(ctx, &i, true)
	return connect.NewResponse(&orlopv1.InspectImageResponse{Image: m}), err
}

func progress(p image.Progress) *orlopv1.LayerProgress {
	return &orlopv1.LayerProgress{Layer: p.Layer.String(), Index: int32(p.Index), Count: int32(p.Count), DoneBytes: p.Done, TotalBytes: p.Total, State: string(p.State)}
}

// relay runs work, whose progress comes from any goroutine and must not wait, and
// sends what it reports from this one: the stream takes one sender only. What the
// client is too slow for is left out; the next report says more anyway.
func relay(work func(report func(image.Progress)) error, send func(*orlopv1.LayerProgress) error) error {
	reports := make(chan image.Progress, 64)
	done := make(chan error, 1)
	go func() {
		err := work(func(p image.Progress) {
			select {
			case reports <- p:
			default:
			}
		})
		done <- err
	}()
	for {
		select {
		case p := <-reports:
			if err := send(progress(p)); err != nil {
				return errors.Join(err, <-done)
			}
		case err := <-done:
			for {
				select {
				case p := <-reports:
					if serr := send(progress(p)); serr != nil {
						return errors.Join(err, serr)
					}
				default:
					return err
				}
			}
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
	m, err := s.encodeImage(ctx, &img, false)
	if err != nil {
		return err
	}
	return out.Send(&orlopv1.PullImageResponse{Message: &orlopv1.PullImageResponse_Image{Image: m}})
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
	return connect.NewResponse(&orlopv1.TagImageResponse{}), s.o.Images.Tag(ctx, req.Msg.GetImage(), req.Msg.GetName())
}

// Pack implements the service.
func (s images) Pack(ctx context.Context, req *connect.Request[orlopv1.PackImageRequest]) (*connect.Response[orlopv1.PackImageResponse], error) {
	m := req.Msg
	i, err := s.o.Images.Pack(ctx, image.PackOptions{
		Source: m.GetSource(), Ref: m.GetName(), Entrypoint: m.GetEntrypoint(), Cmd: m.GetCommand(), Env: m.GetEnv(), User: m.GetUser(),
		WorkDir: m.GetWorkingDir(), Labels: m.GetLabels(), Ports: m.GetPorts(),
	})
	if err != nil {
		return nil, err
	}
	im, err := s.encodeImage(ctx, &i, false)
	return connect.NewResponse(&orlopv1.PackImageResponse{Image: im}), err
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
		m, err := s.encodeImage(ctx, &list[i], false)
		if err != nil {
			return err
		}
		done.Images = append(done.Images, m)
	}
	return stream.Send(&orlopv1.ImportImageResponse{Message: &orlopv1.ImportImageResponse_Images{Images: done}})
}

// Export implements the service.
func (s images) Export(ctx context.Context, req *connect.Request[orlopv1.ExportImageRequest], out *connect.ServerStream[orlopv1.ExportImageResponse]) error {
	f := image.Format(req.Msg.GetFormat())
	if f == "" {
		f = image.OCIArchive
	}
	if f == image.OCILayout {
		return s.o.Images.ExportDir(ctx, req.Msg.GetImages(), req.Msg.GetPath())
	}
	return s.o.Images.Export(ctx, req.Msg.GetImages(), pieces(func(b []byte) error {
		return out.Send(&orlopv1.ExportImageResponse{Data: b})
	}), f)
}
