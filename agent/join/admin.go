package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"plenum/agent/pki"
)

// Admin is the service's interface for root on a server host, a unix socket. It is what plenum token, host, admin and
// ca use.
type Admin struct {
	Socket string // default /run/plenum/join.sock
}

// A TokenRequest is a token to be made.
type TokenRequest struct {
	Region string        `json:"region"`
	Roles  []string      `json:"roles"`
	TTL    time.Duration `json:"ttl"`   // default 1 h, at most 7 days
	Admin  string        `json:"admin"` // who stands for the host; may be empty where there is one admin
}

// A TokenInfo is a token as lists show it. Nobody can show its text again.
type TokenInfo struct {
	ID      string    `json:"id"`
	Region  string    `json:"region"`
	Roles   []string  `json:"roles"`
	Admin   string    `json:"admin"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
	Host    string    `json:"host,omitempty"`  // that has used it
	State   string    `json:"state,omitempty"` // open, used, expired, revoked
	Text    string    `json:"text,omitempty"`  // in the answer to TokenCreate alone
}

// A HostInfo is a host as lists show it.
type HostInfo struct {
	Host    string     `json:"host"`
	Region  string     `json:"region"`
	Roles   []string   `json:"roles"`
	Release string     `json:"release"`
	Arch    string     `json:"arch"`
	Control netip.Addr `json:"control"`
	Media   netip.Addr `json:"media"`
	Admin   string     `json:"admin"`
	Joined  time.Time  `json:"joined"`
	Renewed time.Time  `json:"renewed"`
	Expires time.Time  `json:"expires"` // certificate
	State   string     `json:"state"`   // member, left, revoked
	Node    string     `json:"node,omitempty"`
	Late    bool       `json:"late,omitempty"` // has certificates of retired CAs
}

// An AdminInfo is a person who may stand for hosts.
type AdminInfo struct {
	Name      string    `json:"name"`
	Recipient string    `json:"recipient"` // age1…
	Added     time.Time `json:"added"`
	By        string    `json:"by,omitempty"`

	// Bundle is in the answer to AdminAdd alone: the person's tokens for Consul and Nomad, encrypted to Recipient.
	Bundle string `json:"bundle,omitempty"`

	Consul string `json:"consul,omitempty"` // accessors of the tokens
	Nomad  string `json:"nomad,omitempty"`
}

// ServiceStatus is how the service is.
type ServiceStatus struct {
	Cluster    string    `json:"cluster"`
	Sealed     bool      `json:"sealed"`
	Generation int       `json:"generation"`
	Stage      pki.Stage `json:"stage,omitempty"`
	Late       []string  `json:"late,omitempty"` // hosts that have not renewed since the last stage of a rotation
}

// TokenCreate makes a token; its Text is told this once.
func (a Admin) TokenCreate(ctx context.Context, r TokenRequest) (TokenInfo, error) {
	return call[TokenInfo](ctx, a, http.MethodPost, "/tokens", r)
}

// Tokens lists tokens, the newest first.
func (a Admin) Tokens(ctx context.Context) ([]TokenInfo, error) {
	return call[[]TokenInfo](ctx, a, http.MethodGet, "/tokens", nil)
}

// TokenRevoke makes a token useless, by ID. A host that has used it stays.
func (a Admin) TokenRevoke(ctx context.Context, id, admin string) error {
	_, err := call[struct{}](ctx, a, http.MethodDelete, "/tokens/"+id+"?admin="+admin, nil)
	return err
}

// Hosts lists hosts by name, those that were put out too.
func (a Admin) Hosts(ctx context.Context) ([]HostInfo, error) {
	return call[[]HostInfo](ctx, a, http.MethodGet, "/hosts", nil)
}

// Revoke puts a host out; force, a server without which there is no majority, too.
func (a Admin) Revoke(ctx context.Context, host, admin string, force bool) error {
	_, err := call[struct{}](ctx, a, http.MethodDelete, fmt.Sprintf("/hosts/%s?admin=%s&force=%t", host, admin, force), nil)
	return err
}

// Admins lists the people.
func (a Admin) Admins(ctx context.Context) ([]AdminInfo, error) {
	return call[[]AdminInfo](ctx, a, http.MethodGet, "/admins", nil)
}

// AdminAdd makes a person an admin; by is who says so.
func (a Admin) AdminAdd(ctx context.Context, name, recipient, by string) (AdminInfo, error) {
	return call[AdminInfo](ctx, a, http.MethodPost, "/admins", AdminInfo{Name: name, Recipient: recipient, By: by})
}

// AdminRemove takes a person's tokens away.
func (a Admin) AdminRemove(ctx context.Context, name, by string) error {
	_, err := call[struct{}](ctx, a, http.MethodDelete, "/admins/"+name+"?admin="+by, nil)
	return err
}

type rotation struct {
	Stage  pki.Stage `json:"stage"`
	Admin  string    `json:"admin"`
	Force  bool      `json:"force,omitempty"`
	Shares []string  `json:"shares,omitempty"`
}

// RotateCA takes the rotation of all CAs to a stage. Shares are of the unseal key, where the host has no file of it.
func (a Admin) RotateCA(ctx context.Context, stage pki.Stage, admin string, force bool, shares ...string) error {
	_, err := call[struct{}](ctx, a, http.MethodPost, "/ca", rotation{stage, admin, force, shares})
	return err
}

// RotateGossip changes Consul's gossip key.
func (a Admin) RotateGossip(ctx context.Context, admin string) error {
	_, err := call[struct{}](ctx, a, http.MethodPost, "/gossip", rotation{Admin: admin})
	return err
}

// Status tells how the service is.
func (a Admin) Status(ctx context.Context) (ServiceStatus, error) {
	return call[ServiceStatus](ctx, a, http.MethodGet, "/status", nil)
}

// call asks the socket.
func call[T any](ctx context.Context, a Admin, method, path string, body any) (T, error) {
	var out T
	socket := a.Socket
	if socket == "" {
		socket = "/run/plenum/join.sock"
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	b, err := json.Marshal(body)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://join"+path, bytes.NewReader(b))
	if err != nil {
		return out, err
	}
	res, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrPermission):
			return out, errors.New("the join service is for root: run it with sudo")
		case errors.Is(err, fs.ErrNotExist):
			return out, errors.New("no join service on this host: run it on a server host (plenum status lists them)")
		case errors.Is(err, syscall.ECONNREFUSED):
			return out, errors.New("the join service of this host does not run: plenum-agent has it (plenum doctor)")
		case ctx.Err() != nil:
			return out, context.Cause(ctx)
		}
		return out, fmt.Errorf("the join service of this host: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return out, refusal(res)
	}
	return out, json.NewDecoder(io.LimitReader(res.Body, maxAnswerBytes)).Decode(&out)
}

func (s *Service) adminHandler() http.Handler {
	m := http.NewServeMux()
	// what is the word for the audit file where something is changed; a refusal is a line of it, with the name that
	// was given.
	answer := func(pattern, what string, f func(ctx context.Context, r *http.Request, e *Event) (any, error)) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
			defer cancel()
			e := Event{Time: s.cfg.Now(), What: what, Admin: r.FormValue("admin")}
			v, err := f(ctx, r, &e)
			if err != nil {
				refusal := s.refusal(err)
				if e.Admin == "" {
					e.Admin, _ = s.admin(ctx, "") // where there is one
				}
				if e.Reason, e.Text = refusal.Reason, strings.TrimSpace(e.Text+" "+refusal.Text); what != "" {
					if err := s.audit.write(e); err != nil {
						s.log.Error("refused without an audit line", "err", err)
					}
				}
				refuse(w, status(refusal), refusal)
				return
			}
			if v == nil {
				v = struct{}{}
			}
			reply(w, v)
		})
	}
	answer("POST /tokens", "token-create", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		var q TokenRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		e.Admin = q.Admin
		return s.TokenCreate(ctx, q)
	})
	answer("GET /tokens", "", func(ctx context.Context, _ *http.Request, _ *Event) (any, error) { return s.tokens(ctx) })
	answer("DELETE /tokens/{id}", "token-revoke", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		e.Token = r.PathValue("id")
		return nil, s.tokenRevoke(ctx, e.Token, e.Admin)
	})
	answer("GET /hosts", "", func(ctx context.Context, _ *http.Request, _ *Event) (any, error) { return s.hostList(ctx) })
	answer("DELETE /hosts/{host}", "revoke", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		e.Host = r.PathValue("host")
		admin, err := s.admin(ctx, e.Admin)
		if err != nil {
			return nil, err
		}
		e.Admin = admin
		return nil, s.Revoke(ctx, e.Host, admin, r.FormValue("force") == "true")
	})
	answer("GET /admins", "", func(ctx context.Context, _ *http.Request, _ *Event) (any, error) { return s.admins(ctx) })
	answer("POST /admins", "admin-add", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		var q AdminInfo
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		e.Admin, e.Text = q.By, q.Name
		by, err := s.admin(ctx, q.By)
		if err != nil {
			return nil, err
		}
		e.Admin = by
		return s.AdminAdd(ctx, q.Name, q.Recipient, by)
	})
	answer("DELETE /admins/{name}", "admin-rm", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		e.Text = r.PathValue("name")
		return nil, s.adminRemove(ctx, e.Text, e.Admin)
	})
	rotate := func(r *http.Request, e *Event, ctx context.Context) (q rotation, err error) {
		if err = decode(r, &q); err == nil {
			e.Admin, e.Text = q.Admin, string(q.Stage)
			q.Admin, err = s.admin(ctx, q.Admin)
		}
		if err == nil {
			e.Admin = q.Admin
		}
		return q, err
	}
	answer("POST /ca", "ca-rotate", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		q, err := rotate(r, e, ctx)
		if err != nil {
			return nil, err
		}
		return nil, s.RotateCA(ctx, q.Stage, q.Admin, q.Force, q.Shares...)
	})
	answer("POST /gossip", "gossip-rotate", func(ctx context.Context, r *http.Request, e *Event) (any, error) {
		q, err := rotate(r, e, ctx)
		if err != nil {
			return nil, err
		}
		return nil, s.RotateGossip(ctx, q.Admin)
	})
	answer("GET /status", "", func(ctx context.Context, _ *http.Request, _ *Event) (any, error) { return s.status(ctx) })
	return m
}

func decode(r *http.Request, to any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(to); err != nil {
		return Refusal{ReasonBad, "not a request: " + err.Error()}
	}
	return nil
}

// admin is the admin's name, where it may be left out if there is one. Root on a server host can say any name: it
// is who is asked about it later, not a proof.
func (s *Service) admin(ctx context.Context, name string) (string, error) {
	st, _, err := s.store(ctx)
	if err != nil {
		return "", err
	}
	all, err := st.list(ctx, adminsPrefix)
	if err != nil {
		return "", err
	}
	names := slices.Sorted(maps.Keys(all))
	switch {
	case name == "" && len(names) == 1:
		return names[0], nil
	case name == "":
		return "", Refusal{ReasonBad, "which admin are you? Say --admin NAME; there are: " + strings.Join(names, ", ")}
	case !slices.Contains(names, name):
		return "", Refusal{ReasonBad, "there is no admin " + name + "; there are: " + strings.Join(names, ", ")}
	}
	return name, nil
}

const (
	defaultTTL = time.Hour
	maxTTL     = 7 * 24 * time.Hour
)

// TokenCreate makes a token.
func (s *Service) TokenCreate(ctx context.Context, q TokenRequest) (TokenInfo, error) {
	admin, err := s.admin(ctx, q.Admin)
	if err != nil {
		return TokenInfo{}, err
	}
	if q.TTL == 0 {
		q.TTL = defaultTTL
	}
	switch {
	case !validName(q.Region):
		return TokenInfo{}, Refusal{ReasonBad, "a region's name has a-z, 0-9 and inner hyphens: --region ber"}
	case q.TTL < time.Second || q.TTL > maxTTL:
		return TokenInfo{}, Refusal{ReasonBad, fmt.Sprintf("a token lives between a second and 7 days, not %s", q.TTL)}
	case len(q.Roles) == 0:
		return TokenInfo{}, Refusal{ReasonBad, "a host has at least one role: --roles bridge"}
	}
	slices.Sort(q.Roles)
	q.Roles = slices.Compact(q.Roles)
	for _, r := range q.Roles {
		if !slices.Contains(allRoles, r) {
			return TokenInfo{}, Refusal{ReasonBad, "there is no role " + r + "; there are: " + strings.Join(allRoles, ", ")}
		}
	}
	st, c, err := s.store(ctx)
	if err != nil {
		return TokenInfo{}, err
	}
	now := s.cfg.Now()
	t := tokenState{ID: uuid()[:8], Region: q.Region, Roles: q.Roles, Admin: admin, Made: now.UTC().Truncate(time.Second), Expires: now.Add(q.TTL).UTC().Truncate(time.Second)}
	secret, err := s.cfg.Vault.Wrap(ctx, t, q.TTL)
	if err != nil {
		return TokenInfo{}, err
	}
	servers, err := s.servers(ctx, st, c)
	if err != nil {
		return TokenInfo{}, err
	}
	if err := s.audit.write(Event{Time: now, What: "token-create", Token: t.ID, Admin: admin, Text: fmt.Sprintf("region %s, roles %s, until %s", t.Region, strings.Join(t.Roles, ","), t.Expires.Format(time.RFC3339))}); err != nil {
		return TokenInfo{}, err
	}
	if err := st.put(ctx, tokensPrefix+digest(secret), t, 0); err != nil {
		return TokenInfo{}, err
	}
	info := t.info(now)
	info.Text = Token{Cluster: c.Name, Addresses: servers, Pin: c.pin(), Secret: secret, Region: t.Region, Roles: t.Roles, Expires: t.Expires}.String()
	return info, nil
}

// servers are the addresses of join services.
func (s *Service) servers(ctx context.Context, st store, c common) ([]string, error) {
	all, err := s.hosts(ctx, st)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range all {
		if v := s.server(c, h); h.is(RoleServer) && v.Join != "" {
			out = append(out, v.Join)
		}
	}
	if len(out) == 0 {
		return nil, Refusal{ReasonBad, "no server host has a stable address on the underlay: set address in plenum.hcl"}
	}
	return out[:min(len(out), 5)], nil
}

func (t *tokenState) info(now time.Time) TokenInfo {
	i := TokenInfo{ID: t.ID, Region: t.Region, Roles: t.Roles, Admin: t.Admin, Made: t.Made, Expires: t.Expires, Host: t.Host, State: "open"}
	switch {
	case t.Revoked:
		i.State = "revoked"
	case t.Host != "":
		i.State = "used"
	case now.After(t.Expires):
		i.State = "expired"
	}
	return i
}

func (s *Service) tokens(ctx context.Context) ([]TokenInfo, error) {
	st, _, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	states, err := everything[tokenState](ctx, st, tokensPrefix)
	if err != nil {
		return nil, err
	}
	all := []TokenInfo{}
	for _, t := range states {
		all = append(all, t.info(s.cfg.Now()))
	}
	slices.SortFunc(all, func(a, b TokenInfo) int { return b.Made.Compare(a.Made) })
	return all, nil
}

func (s *Service) tokenRevoke(ctx context.Context, id, admin string) error {
	admin, err := s.admin(ctx, admin)
	if err != nil {
		return err
	}
	st, _, err := s.store(ctx)
	if err != nil {
		return err
	}
	values, err := st.list(ctx, tokensPrefix)
	if err != nil {
		return err
	}
	for key, b := range values {
		var t tokenState
		if json.Unmarshal(b, &t) != nil || t.ID != id {
			continue
		}
		if _, err := update(ctx, st, tokensPrefix+key, func(t *tokenState, exists bool) error {
			t.Revoked = true
			return nil
		}); err != nil {
			return err
		}
		return s.audit.write(Event{Time: s.cfg.Now(), What: "token-revoke", Token: id, Admin: admin, Host: t.Host})
	}
	return Refusal{ReasonUnknown, "there is no token " + id + ": see plenum token list"}
}

func (s *Service) hostList(ctx context.Context) ([]HostInfo, error) {
	st, c, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	states, err := everything[hostState](ctx, st, statesPrefix)
	if err != nil {
		return nil, err
	}
	generation := 0
	if t, err := s.cfg.Vault.Trust(ctx); err == nil { // unknown while sealed
		generation = t.Generation
	}
	all := []HostInfo{}
	for _, h := range states {
		i := HostInfo{Host: h.Host, Region: h.Region, Roles: h.Roles, Release: h.Facts.Release, Arch: h.Facts.Arch, Control: address(c.Control, h.Number).Addr(),
			Media: address(c.Media, h.Number).Addr(), Admin: h.Admin, Joined: h.Joined, Renewed: h.Renewed, Expires: h.Expires, State: "member", Node: h.Node, Late: h.Generation < generation}
		if h.Left {
			i.State = "left"
		}
		if h.Revoked {
			i.State = "revoked"
		}
		all = append(all, i)
	}
	return all, nil
}

func (s *Service) admins(ctx context.Context) ([]AdminInfo, error) {
	st, _, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	return everything[AdminInfo](ctx, st, adminsPrefix)
}

// AdminAdd makes a person an admin, with tokens of their own for Consul and Nomad, which only their age key opens. One who
// is an admin already, by the same key, gets new tokens, and the old ones end. Init makes the first, by nobody.
func (s *Service) AdminAdd(ctx context.Context, name, recipient, by string) (AdminInfo, error) {
	if !validName(name) {
		return AdminInfo{}, Refusal{ReasonBad, "an admin's name has a-z, 0-9 and inner hyphens"}
	}
	if _, err := age.ParseX25519Recipient(recipient); err != nil {
		return AdminInfo{}, Refusal{ReasonBad, fmt.Sprintf("%q is no age recipient (age1…, made by age-keygen): %v", recipient, err)}
	}
	st, c, err := s.store(ctx)
	if err != nil {
		return AdminInfo{}, err
	}
	info := AdminInfo{Name: name, Recipient: recipient, Added: s.cfg.Now().UTC().Truncate(time.Second), By: by}
	if err := s.audit.write(Event{Time: s.cfg.Now(), What: "admin-add", Admin: by, Text: name + " " + recipient}); err != nil {
		return info, err
	}
	// The name is taken first: what a killed call leaves behind is an admin without tokens, who can be added again.
	var old AdminInfo
	if _, err := update(ctx, st, adminsPrefix+name, func(a *AdminInfo, exists bool) error {
		if exists && a.Recipient != recipient {
			return Refusal{ReasonName, "there is an admin " + name + " with another key: plenum admin rm " + name + " first"}
		}
		if old = *a; !exists {
			*a = info
		}
		return nil
	}); err != nil {
		return info, err
	}
	ct, _, err := st.client.ACL().TokenCreate(&consul.ACLToken{Description: "admin " + name, Policies: []*consul.ACLTokenPolicyLink{{Name: "plenum-admin"}}}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return info, fmt.Errorf("consul: %w", err)
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err != nil {
		return info, err
	}
	nt, _, err := client.ACLTokens().Create(&nomad.ACLToken{Name: "admin " + name, Type: "management"}, (&nomad.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return info, fmt.Errorf("nomad: %w", err)
	}
	info.Consul, info.Nomad = ct.AccessorID, nt.AccessorID
	if _, err := update(ctx, st, adminsPrefix+name, func(a *AdminInfo, exists bool) error { *a = info; return nil }); err != nil {
		return info, err
	}
	if err := endAdmin(ctx, st.client, client, old); err != nil {
		return info, err
	}
	info.Bundle, err = pki.Encrypt(fmt.Appendf(nil, "CONSUL_HTTP_TOKEN=%s\nNOMAD_TOKEN=%s\n", ct.SecretID, nt.SecretID), []string{recipient})
	return info, err
}

func (s *Service) adminRemove(ctx context.Context, name, by string) error {
	by, err := s.admin(ctx, by)
	if err != nil {
		return err
	}
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	values, err := st.list(ctx, adminsPrefix)
	if err != nil {
		return err
	}
	var a AdminInfo
	switch b, ok := values[name]; {
	case !ok:
		return Refusal{ReasonUnknown, "there is no admin " + name}
	case len(values) == 1:
		return Refusal{ReasonBad, "the last admin stays: add another first"}
	default:
		if err := json.Unmarshal(b, &a); err != nil {
			return err
		}
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err == nil {
		err = endAdmin(ctx, st.client, client, a)
	}
	if err != nil {
		return err
	}
	if err := st.delete(ctx, adminsPrefix+name); err != nil {
		return err
	}
	return s.audit.write(Event{Time: s.cfg.Now(), What: "admin-rm", Admin: by, Text: name})
}

// endAdmin takes the tokens of an admin back, those that there are.
func endAdmin(ctx context.Context, c *consul.Client, n *nomad.Client, a AdminInfo) error {
	if a.Consul != "" {
		if _, err := c.ACL().TokenDelete(a.Consul, (&consul.WriteOptions{}).WithContext(ctx)); err != nil && !isNotFound(err) {
			return fmt.Errorf("consul: %w", err)
		}
	}
	if a.Nomad != "" {
		if _, err := n.ACLTokens().Delete(a.Nomad, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil && !strings.Contains(err.Error(), "not found") {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	return nil
}

func (s *Service) status(ctx context.Context) (ServiceStatus, error) {
	st, c, err := s.store(ctx)
	if err != nil {
		return ServiceStatus{}, err
	}
	out := ServiceStatus{Cluster: c.Name}
	t, err := s.cfg.Vault.Trust(ctx)
	if errors.Is(err, pki.ErrSealed) {
		out.Sealed = true
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Generation, out.Stage = t.Generation, t.Stage
	out.Late, err = s.late(ctx, st)
	return out, err
}
