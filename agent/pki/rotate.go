package pki

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/vault/api"
)

// A Stage of a rotation of all CAs. Each is its own command: between them every host has to have renewed.
type Stage string

// The stages in their order.
const (
	StageTrust  Stage = "trust"  // new CAs are made and trusted, old ones issue
	StageIssue  Stage = "issue"  // new ones issue, old ones are trusted
	StageRetire Stage = "retire" // old ones are gone
)

// ErrStage is a stage out of its order.
var ErrStage = errors.New("the stages of a rotation are trust, issue, retire")

// Rotate takes the CAs for Nebula and TLS one stage further. It needs a root token: the join service cannot.
func (v *Vault) Rotate(ctx context.Context, root string, to Stage) (Trust, error) {
	c, err := v.as(root)
	if err != nil {
		return Trust{}, err
	}
	t, err := v.rotate(ctx, c, to)
	return t, explain(err)
}

func (v *Vault) rotate(ctx context.Context, c *api.Client, to Stage) (Trust, error) {
	s, err := c.Logical().ReadWithContext(ctx, kv+"/data/trust")
	if err != nil {
		return Trust{}, err
	}
	var t Trust
	if found, err := unwrapJSON(s, &t); err != nil || !found {
		return Trust{}, errors.Join(errors.New("no CAs yet"), err)
	}
	meta, _ := s.Data["metadata"].(map[string]any)
	switch {
	case t.Stage == to:
		return t, nil // done before
	case to == StageTrust && (t.Stage == "" || t.Stage == StageRetire):
		err = v.rotateTrust(ctx, c, &t)
	case to == StageIssue && t.Stage == StageTrust:
		err = v.rotateIssue(ctx, c, &t)
	case to == StageRetire && t.Stage == StageIssue:
		err = v.rotateRetire(ctx, c, &t)
	default:
		return t, fmt.Errorf("%w: after %q comes not %q", ErrStage, t.Stage, to)
	}
	if err != nil {
		return t, err
	}
	t.Stage = to
	t.Generation++
	_, err = c.Logical().WriteWithContext(ctx, kv+"/data/trust", map[string]any{"data": wrapJSON(t), "options": map[string]any{"cas": meta["version"]}})
	return t, err
}

// newest is the highest version of each kind.
func (t *Trust) newest(k Kind) int {
	n := 0
	for _, ca := range t.Nebula {
		if ca.Kind == k {
			n = max(n, ca.Version)
		}
	}
	return n
}

func (v *Vault) rotateTrust(ctx context.Context, c *api.Client, t *Trust) error {
	for _, k := range []Kind{Servers, Hosts} {
		n := t.newest(k) + 1
		if _, err := publicKey(ctx, c, string(k), n); err != nil { // a rotation that was cut short has made it
			if _, err := c.Logical().WriteWithContext(ctx, transit+"/keys/"+string(k)+"/rotate", nil); err != nil {
				return err
			}
		}
		ca, err := v.nebulaCA(ctx, c, k, n)
		if err != nil {
			return err
		}
		t.Nebula = append(t.Nebula, ca)
	}
	n := t.newest(Hosts)
	issuer := fmt.Sprintf("tls-%d", n)
	s, err := c.Logical().ReadWithContext(ctx, pkiMount+"/issuer/"+issuer)
	if err != nil || s == nil {
		if _, err := c.Logical().WriteWithContext(ctx, pkiMount+"/issuers/generate/root/internal", v.tlsRoot(n)); err != nil {
			return err
		}
		if s, err = c.Logical().ReadWithContext(ctx, pkiMount+"/issuer/"+issuer); err != nil {
			return err
		}
	}
	t.TLS = append(t.TLS, withNewline(fmt.Sprint(s.Data["certificate"])))
	return nil
}

func (v *Vault) rotateIssue(ctx context.Context, c *api.Client, t *Trust) error {
	for i := range t.Nebula {
		ca := &t.Nebula[i]
		ca.Issuing = ca.Kind != BreakGlass && ca.Version == t.newest(ca.Kind)
	}
	_, err := c.Logical().WriteWithContext(ctx, pkiMount+"/config/issuers", map[string]any{"default": fmt.Sprintf("tls-%d", t.newest(Hosts))})
	return err
}

func (v *Vault) rotateRetire(ctx context.Context, c *api.Client, t *Trust) error {
	var keep []CA
	for _, ca := range t.Nebula {
		if ca.Kind == BreakGlass || ca.Issuing {
			keep = append(keep, ca)
		}
	}
	t.Nebula, t.TLS = keep, t.TLS[len(t.TLS)-1:]
	for _, k := range []Kind{Servers, Hosts} {
		n := t.newest(k)
		if _, err := c.Logical().WriteWithContext(ctx, transit+"/keys/"+string(k)+"/config", map[string]any{"min_encryption_version": n, "min_decryption_version": n}); err != nil {
			return err
		}
	}
	_, err := c.Logical().DeleteWithContext(ctx, fmt.Sprintf("%s/issuer/tls-%d", pkiMount, t.newest(Hosts)-1))
	return err
}
