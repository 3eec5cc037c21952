package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
)

// ListImages implements the service.
func (s *Server) ListImages(ctx context.Context, r *v1.ListImagesRequest) (*v1.ListImagesResponse, error) {
	list, err := s.images(ctx, r.Filter)
	return &v1.ListImagesResponse{Images: list}, err
}

// StreamImages implements the service.
func (s *Server) StreamImages(r *v1.StreamImagesRequest, stream v1.ImageService_StreamImagesServer) error {
	list, err := s.images(stream.Context(), r.Filter)
	if err != nil {
		return err
	}
	return pieces(list, func(l []*v1.Image) error { return stream.Send(&v1.StreamImagesResponse{Images: l}) })
}

func (s *Server) images(ctx context.Context, f *v1.ImageFilter) ([]*v1.Image, error) {
	if name := f.GetImage().GetImage(); name != "" {
		img, err := s.o.Images.Resolve(ctx, name)
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*v1.Image{encodeImage(&img)}, nil
	}
	all, err := s.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]*v1.Image, 0, len(all))
	for i := range all {
		list = append(list, encodeImage(&all[i]))
	}
	return list, nil
}

func encodeImage(i *image.Image) *v1.Image {
	out := &v1.Image{Id: i.ID.String(), RepoTags: i.Names, RepoDigests: i.Digests, Size: uint64(i.SizeBytes), Pinned: i.Pinned, Spec: &v1.ImageSpec{Image: i.ID.String()}}
	user, _, _ := strings.Cut(i.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &v1.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// ImageStatus implements the service. An image that is not here is no error; one that
// the policy does not let run counts as not here, so that a client pulls it, which
// verifies it or says why not.
func (s *Server) ImageStatus(ctx context.Context, r *v1.ImageStatusRequest) (*v1.ImageStatusResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errs.New(errs.Invalid, "ImageStatus: image is missing")
	}
	img, err := s.o.Images.Use(ctx, r.Image.Image)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.PermissionDenied) {
		return &v1.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	answer := &v1.ImageStatusResponse{Image: encodeImage(&img)}
	if r.Verbose {
		answer.Info = info(map[string]any{"imageSpec": map[string]any{"config": img.Config, "created": img.Created, "platform": img.Platform}, "layers": img.Layers})
	}
	return answer, nil
}

// PullImage implements the service.
func (s *Server) PullImage(ctx context.Context, r *v1.PullImageRequest) (*v1.PullImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errs.New(errs.Invalid, "PullImage: image is missing")
	}
	if err := s.o.Pods.CheckHandler(r.Image.RuntimeHandler); err != nil {
		return nil, err
	}
	auth, err := credentials(r.Auth)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	img, err := s.o.Images.Pull(ctx, r.Image.Image, image.PullOptions{Auth: auth})
	if err != nil {
		return nil, err
	}
	s.log.Info("image pulled", "image", r.Image.Image, "id", img.ID, "took", time.Since(begin).Round(time.Millisecond))
	return &v1.PullImageResponse{ImageRef: img.ID.String()}, nil
}

func credentials(a *v1.AuthConfig) (*image.Auth, error) {
	if a == nil {
		return nil, nil
	}
	out := &image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" && a.Username == "" {
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the pull's auth is not base64: %w", err)
		}
		name, password, ok := strings.Cut(string(raw), ":")
		if !ok {
			return nil, errs.New(errs.Invalid, "the pull's auth is not of the form user:password")
		}
		out.Username, out.Password = name, strings.TrimRight(password, "\x00")
	}
	if *out == (image.Auth{}) {
		return nil, nil
	}
	return out, nil
}

// RemoveImage implements the service. It is idempotent, and takes all the names of an
// image that is given by its id.
func (s *Server) RemoveImage(ctx context.Context, r *v1.RemoveImageRequest) (*v1.RemoveImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errs.New(errs.Invalid, "RemoveImage: image is missing")
	}
	img, err := s.o.Images.Resolve(ctx, r.Image.Image)
	if errors.Is(err, errs.NotFound) {
		return &v1.RemoveImageResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	used := s.o.UsedImages()
	_, err = s.o.Images.Remove(ctx, img.ID.String(), func(id digest.Digest) bool { return used[id.String()] })
	if errors.Is(err, errs.NotFound) {
		err = nil
	}
	return &v1.RemoveImageResponse{}, err
}

// imageRef is what kubelet shows as the image's id: a reference by digest, where the image
// was pulled by one.
func (s *Server) imageRef(ctx context.Context, id string) string {
	img, err := s.o.Images.Resolve(ctx, id)
	if err == nil && len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return id
}

// imageName is what people call an image: kubelet asks for a container by the image's id,
// and shows what it is answered.
func (s *Server) imageName(ctx context.Context, asked string) string {
	if _, err := digest.Parse(asked); err != nil {
		return asked
	}
	if img, err := s.o.Images.Resolve(ctx, asked); err == nil && len(img.Names) > 0 {
		return img.Names[0]
	}
	return asked
}

// ImageFsInfo implements the service.
func (s *Server) ImageFsInfo(ctx context.Context, _ *v1.ImageFsInfoRequest) (*v1.ImageFsInfoResponse, error) {
	images, err := s.layers.measure(s.o.ImageDir, func() (int64, int64, error) { return s.o.Images.Usage(ctx) })
	if err != nil {
		return nil, err
	}
	containers, err := s.layers.measure(s.o.ContainerDir, func() (int64, int64, error) { return tree(ctx, s.o.ContainerDir) })
	if err != nil {
		return nil, err
	}
	return &v1.ImageFsInfoResponse{
		ImageFilesystems:     []*v1.FilesystemUsage{images.encode(s.o.ImageDir)},
		ContainerFilesystems: []*v1.FilesystemUsage{containers.encode(s.o.ContainerDir)},
	}, nil
}
