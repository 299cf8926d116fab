/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plugin-quit.h - the process ends by order of the control socket */
#pragma once

/** nbdkit ends; connections that are still there after a moment are cut. Any thread. */
void plugin_quit(void);
/** At the plugin's end: what plugin_quit() began ends too. */
void plugin_quit_done(void);
/** From .after_fork: the process outlives the colod that started it. */
void plugin_outlive_parent(void);
