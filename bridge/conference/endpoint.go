package conference

// An Endpoint is one participant: what it sends and what it gets.
type Endpoint struct {
	c    *Conference
	id   EndpointID
	leg  Leg
	caps Capabilities
}

// ID is the endpoint's name.
func (e *Endpoint) ID() EndpointID { return e.id }
