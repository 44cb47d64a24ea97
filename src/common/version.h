/* common/version.h - the version that every program of the suite reports. */
#ifndef RANKSERVE_COMMON_VERSION_H
#define RANKSERVE_COMMON_VERSION_H

#define RANKSERVE_VERSION "0.1.0"

#endif
