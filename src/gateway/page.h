/* gateway/page.h - the page at / : a small chat for people, nothing from elsewhere. */
#ifndef RANKSERVE_GATEWAY_PAGE_H
#define RANKSERVE_GATEWAY_PAGE_H

extern const char page_html[];

#endif
