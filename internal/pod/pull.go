package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// image returns the container's image, pulling it where its policy says so.
func (w *worker) image(ctx context.Context, spec *Spec, c *Container) (Image, error) {
	if c.PullPolicy != PullAlways {
		img, err := w.p.o.Images.Use(ctx, c.Image)
		if err == nil {
			return img, nil
		}
		if !isGone(err) {
			return img, err
		}
		if c.PullPolicy == PullNever {
			return img, errs.New(errs.NotFound, "image %s is not here, and the container's imagePullPolicy is Never; get it with: orlop image pull %s", c.Image, c.Image)
		}
	}
	credentials := make(map[string]Credential)
	for _, name := range spec.ImagePulls {
		conf, err := w.p.Config(ctx, true, spec.Namespace, name)
		if err != nil {
			w.note(c.Name, true, "FailedToRetrieveImagePullSecret", err.Error())
			continue
		}
		if err := dockerCredentials(conf, credentials); err != nil {
			w.note(c.Name, true, "FailedToRetrieveImagePullSecret", err.Error())
		}
	}
	w.note(c.Name, false, "Pulling", "pulling image "+c.Image)
	begin := time.Now()
	img, err := w.p.o.Images.Pull(ctx, c.Image, credentials)
	if err == nil {
		w.note(c.Name, false, "Pulled", fmt.Sprintf("pulled image %s in %s", c.Image, time.Since(begin).Round(time.Millisecond)))
	}
	return img, err
}

// dockerCredentials reads a secret of type kubernetes.io/dockerconfigjson.
func dockerCredentials(c Config, into map[string]Credential) error {
	var conf struct {
		Auths map[string]struct{ Username, Password, Auth string }
	}
	raw, ok := c.Data[".dockerconfigjson"]
	if !ok {
		return errs.New(errs.Invalid, "secret %s/%s has no key .dockerconfigjson", c.Namespace, c.Name)
	}
	if err := json.Unmarshal(raw, &conf); err != nil {
		return errs.New(errs.Invalid, "secret %s/%s: %w", c.Namespace, c.Name, err)
	}
	for host, a := range conf.Auths {
		cred := Credential{a.Username, a.Password}
		if a.Auth != "" {
			b, err := decodeBase64(a.Auth)
			if err != nil {
				return errs.New(errs.Invalid, "secret %s/%s: auth of %s: %w", c.Namespace, c.Name, host, err)
			}
			cred.Username, cred.Password, _ = strings.Cut(string(b), ":")
		}
		host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		if host == "index.docker.io" {
			host = "docker.io"
		}
		into[host] = cred
	}
	return nil
}
