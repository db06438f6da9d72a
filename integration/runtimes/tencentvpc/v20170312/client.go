// Package v20170312 stands for Tencent's of the name, which the Go module proxy does not serve: it has as much of it as flannel
// needs to be built. Tests run no flannel on Tencent's cloud; one that would is refused.
package v20170312

import "errors"

// Client reaches nobody.
type Client struct{}

var errNotHere = errors.New("this flannel was built without Tencent's cloud")

func NewClientWithSecretId(_, _, _ string) (*Client, error) { return nil, errNotHere }

type (
	Filter struct {
		Name   *string
		Values []*string
	}
	Route struct {
		RouteId                                                 *uint64
		DestinationCidrBlock, GatewayType, GatewayId, RouteType *string
		Enabled                                                 *bool
	}
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}
	DescribeRouteTablesRequest  struct{ Filters []*Filter }
	DescribeRouteTablesResponse struct {
		Response *struct{ RouteTableSet []*RouteTable }
	}
	DeleteRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
	CreateRoutesRequest DeleteRoutesRequest
)

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}
func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }
func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errNotHere
}

func (*Client) DeleteRoutes(*DeleteRoutesRequest) (any, error) { return nil, errNotHere }
func (*Client) CreateRoutes(*CreateRoutesRequest) (any, error) { return nil, errNotHere }
